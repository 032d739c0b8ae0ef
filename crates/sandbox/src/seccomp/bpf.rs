//! From verdicts to instructions.

use super::profile::{Architecture, Comparison, Condition, Rules, Verdict};

/// One instruction of classic BPF (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a jump's condition holds.
    pub jump_true: u8,
    /// Instructions to skip otherwise.
    pub jump_false: u8,
    /// Operand.
    pub k: u32,
}

// Operations of `linux/bpf_common.h` that filters need.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const ALLOW: u32 = 0x7fff_0000; // SECCOMP_RET_ALLOW
const ERRNO: u32 = 0x0005_0000; // SECCOMP_RET_ERRNO

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Bit of x32's call numbers.
const X32: u32 = 0x4000_0000;

const fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

fn refuse(errno: i32) -> Instruction {
    op(RETURN, ERRNO | errno as u32)
}

/// Assembles a program; the first of `rules` is the native table.
pub(crate) fn assemble(architecture: Architecture, rules: &[Rules]) -> Vec<Instruction> {
    let mut program = vec![op(LOAD, ARCHITECTURE)];
    for table in rules {
        let mut body = vec![op(LOAD, NUMBER)];
        search(architecture, &ranges(table), &mut body);
        // Not this table: skip the body, which is longer than a conditional jump reaches.
        program.push(Instruction { code: JUMP_EQ, jump_true: 1, jump_false: 0, k: table.audit });
        program.push(op(JUMP, body.len() as u32));
        program.append(&mut body);
    }
    program.push(refuse(libc::ENOSYS));
    program
}

/// Adjacent calls with the same verdict: (first number, verdict; `None` for unknown calls). Starts at 0.
fn ranges(rules: &Rules) -> Vec<(u32, Option<&Verdict>)> {
    let mut ranges: Vec<(u32, Option<&Verdict>)> = vec![(0, None)];
    let mut next = 0;
    for (&number, verdict) in &rules.verdicts {
        debug_assert!(number < X32, "x32 calls are no calls");
        if number > next {
            append(&mut ranges, next, None);
        }
        append(&mut ranges, number, Some(verdict));
        next = number + 1;
    }
    append(&mut ranges, next, None);
    ranges
}

fn append<'a>(ranges: &mut Vec<(u32, Option<&'a Verdict>)>, start: u32, verdict: Option<&'a Verdict>) {
    match ranges.last_mut() {
        Some(last) if last.0 == start => last.1 = verdict,
        Some(last) if last.1 == verdict => {}
        _ => ranges.push((start, verdict)),
    }
}

fn search(architecture: Architecture, ranges: &[(u32, Option<&Verdict>)], out: &mut Vec<Instruction>) {
    if let [(_, verdict)] = ranges {
        return leaf(architecture, *verdict, out);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let pivot = right[0].0;
    let mut left_code = Vec::new();
    search(architecture, left, &mut left_code);
    match u8::try_from(left_code.len()) {
        Ok(skip) => out.push(Instruction { code: JUMP_GE, jump_true: skip, jump_false: 0, k: pivot }),
        Err(_) => {
            out.push(Instruction { code: JUMP_GE, jump_true: 0, jump_false: 1, k: pivot });
            out.push(op(JUMP, left_code.len() as u32));
        }
    }
    out.append(&mut left_code);
    search(architecture, right, out);
}

fn leaf(architecture: Architecture, verdict: Option<&Verdict>, out: &mut Vec<Instruction>) {
    match verdict {
        None => out.push(refuse(libc::ENOSYS)),
        Some(Verdict::Allow) => out.push(op(RETURN, ALLOW)),
        Some(Verdict::Errno(errno)) => out.push(refuse(i32::from(*errno))),
        Some(Verdict::AllowIf(lists)) => {
            for list in lists {
                conditions(architecture, list, out);
            }
            out.push(refuse(libc::EPERM));
        }
        Some(Verdict::PretendUnless(lists)) => {
            for list in lists {
                conditions(architecture, list, out);
            }
            // "Fails" with the number 0: the call is not made, and returns 0.
            out.push(refuse(0));
        }
    }
}

/// Returns `ALLOW` if all hold, and falls through otherwise.
fn conditions(architecture: Architecture, list: &[Condition], out: &mut Vec<Instruction>) {
    let mut code = Vec::new();
    // From the last to the first, so that the distance to the end is known.
    code.push(op(RETURN, ALLOW));
    for condition in list.iter().rev() {
        let fail = code.len() as u8;
        let jump = |code, holds: bool, k| {
            let (jump_true, jump_false) = if holds { (0, fail) } else { (fail, 0) };
            Instruction { code, jump_true, jump_false, k }
        };
        let (mask, test) = match condition.comparison {
            Comparison::Equal(k) => (None, jump(JUMP_EQ, true, k)),
            Comparison::NotEqual(k) => (None, jump(JUMP_EQ, false, k)),
            Comparison::Less(k) => (None, jump(JUMP_GE, false, k)),
            Comparison::GreaterOrEqual(k) => (None, jump(JUMP_GE, true, k)),
            Comparison::Greater(k) => (None, jump(JUMP_GT, true, k)),
            Comparison::LessOrEqual(k) => (None, jump(JUMP_GT, false, k)),
            Comparison::Masked { mask, value } => (Some(mask), jump(JUMP_EQ, true, value)),
        };
        code.insert(0, test);
        if let Some(mask) = mask {
            code.insert(0, op(AND, mask));
        }
        let high_word_first = if architecture.big_endian() { 4 } else { 0 };
        code.insert(0, op(LOAD, ARGUMENTS + 8 * u32::from(condition.index) + high_word_first));
    }
    out.append(&mut code);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{Filter, rules};

    /// Runs a program as the kernel does.
    fn run(program: &[Instruction], big_endian: bool, audit: u32, number: u32, args: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => audit,
            offset => {
                let index = ((offset - ARGUMENTS) / 8) as usize;
                let second = (offset - ARGUMENTS) % 8 == 4;
                if second == big_endian { args[index] as u32 } else { (args[index] >> 32) as u32 }
            }
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let i = program[at];
            at += 1;
            let mut branch = |holds: bool| at += usize::from(if holds { i.jump_true } else { i.jump_false });
            match i.code {
                LOAD => accumulator = word(i.k),
                AND => accumulator &= i.k,
                JUMP => at += i.k as usize,
                JUMP_EQ => branch(accumulator == i.k),
                JUMP_GT => branch(accumulator > i.k),
                JUMP_GE => branch(accumulator >= i.k),
                RETURN => return i.k,
                code => panic!("unknown operation {code:#x}"),
            }
        }
    }

    fn expected(verdict: Option<&Verdict>, args: [u64; 6]) -> u32 {
        let holds = |c: &Condition| {
            let arg = args[usize::from(c.index)] as u32;
            match c.comparison {
                Comparison::Equal(v) => arg == v,
                Comparison::NotEqual(v) => arg != v,
                Comparison::Less(v) => arg < v,
                Comparison::LessOrEqual(v) => arg <= v,
                Comparison::Greater(v) => arg > v,
                Comparison::GreaterOrEqual(v) => arg >= v,
                Comparison::Masked { mask, value } => arg & mask == value,
            }
        };
        match verdict {
            None => ERRNO | libc::ENOSYS as u32,
            Some(Verdict::Allow) => ALLOW,
            Some(Verdict::Errno(errno)) => ERRNO | u32::from(*errno),
            Some(Verdict::AllowIf(lists)) if lists.iter().any(|list| list.iter().all(holds)) => ALLOW,
            Some(Verdict::AllowIf(_)) => ERRNO | 1,
            Some(Verdict::PretendUnless(lists)) if lists.iter().any(|list| list.iter().all(holds)) => ALLOW,
            Some(Verdict::PretendUnless(_)) => ERRNO,
        }
    }

    const DOCKER: u64 = 0xa804_25fb;

    #[test]
    fn the_program_says_what_the_profile_says_for_every_call_of_every_architecture() {
        for architecture in Architecture::ALL {
            for (caps, one_id) in
                [(0, false), (DOCKER, false), (DOCKER, true), (DOCKER | 1 << 21, false), (u64::MAX, false)]
            {
                let tables = rules(architecture, caps, (6, 18), one_id).unwrap();
                let filter = Filter::compile(architecture, caps, (6, 18), one_id).unwrap();
                assert!(filter.instructions().len() < 4096, "the kernel's limit");
                for table in &tables {
                    let last = *table.verdicts.keys().last().unwrap();
                    for number in (0..last.min(2000) + 20).chain(last..last + 3).chain([X32, X32 + 59, u32::MAX]) {
                        for first in [0, 1, 2, 8, 37, 38, 39, 40, 41, 0x20000, 0x2_0008, 0x1000_0000, 0xffff_ffff] {
                            for high in [0, 1 << 32, u64::MAX << 32] {
                                let args = [first | high, first | high, 0, 0, 0, 0];
                                let got =
                                    run(filter.instructions(), architecture.big_endian(), table.audit, number, args);
                                let want = expected(table.verdicts.get(&number), args);
                                assert_eq!(got, want, "{architecture:?} call {number} args {args:x?}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn with_one_id_a_change_to_another_owner_only_seems_to_happen() {
        for (one_id, other) in [(false, ALLOW), (true, ERRNO)] {
            let filter = Filter::compile(Architecture::X86_64, DOCKER, (6, 18), one_id).unwrap();
            let table = Architecture::X86_64.tables().remove(0);
            let verdict =
                |name: &str, args| run(filter.instructions(), false, table.audit, (table.number)(name).unwrap(), args);
            let keep = u64::MAX;
            for (user, group) in [(0, 0), (0, keep), (keep, 0), (keep, keep), (0, u64::from(u32::MAX))] {
                for name in ["chown", "fchown", "lchown"] {
                    assert_eq!(verdict(name, [7, user, group, 9, 9, 9]), ALLOW, "{name} {user} {group}");
                }
                assert_eq!(verdict("fchownat", [7, 7, user, group, 9, 9]), ALLOW, "fchownat {user} {group}");
            }
            for (user, group) in [(1, 0), (0, 1), (keep, 5), (1000, keep), (1000, 1000)] {
                assert_eq!(verdict("chown", [0, user, group, 0, 0, 0]), other, "chown {user} {group}");
                assert_eq!(verdict("fchownat", [0, 0, user, group, 0, 0]), other, "fchownat {user} {group}");
            }
        }
    }

    /// The table of security.md I02 and I03, by hand and not from the profile.
    #[test]
    fn what_must_be_denied_is_denied_and_what_programs_need_is_allowed() {
        let filter = Filter::compile(Architecture::X86_64, DOCKER, (6, 18), false).unwrap();
        let native = Architecture::X86_64.tables().remove(0);
        let compat = Architecture::X86_64.tables().remove(1);
        let verdict = |table: &super::super::profile::Table, name: &str, args| {
            let number = (table.number)(name).unwrap_or_else(|| panic!("no call {name}"));
            run(filter.instructions(), false, table.audit, number, args)
        };
        let none = [0; 6];
        let (eperm, enosys) = (ERRNO | libc::EPERM as u32, ERRNO | libc::ENOSYS as u32);
        for name in [
            "io_uring_setup",
            "io_uring_enter",
            "userfaultfd",
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "perf_event_open",
            "open_by_handle_at",
            "kexec_load",
            "init_module",
            "finit_module",
            "delete_module",
            "mount",
            "umount2",
            "unshare",
            "setns",
            "pivot_root",
            "fsopen",
            "move_mount",
            "open_tree",
            "swapon",
            "reboot",
        ] {
            assert_eq!(verdict(&native, name, none), eperm, "{name}");
        }
        assert_eq!(verdict(&native, "clone3", none), enosys);
        assert_eq!(verdict(&compat, "socketcall", none), enosys);
        for name in ["read", "openat", "execve", "chroot", "ptrace", "mknodat", "setuid", "fchownat", "clone"] {
            assert_eq!(verdict(&native, name, none), ALLOW, "{name}");
        }
        for high in [0, 1 << 32, 0xffff_ffff << 32] {
            for (domain, allowed) in [(1, true), (2, true), (38, false), (40, false), (16, true)] {
                for table in [&native, &compat] {
                    let want = if allowed { ALLOW } else { eperm };
                    assert_eq!(verdict(table, "socket", [domain | high, 0, 0, 0, 0, 0]), want, "{domain} {high:#x}");
                }
            }
            assert_eq!(verdict(&native, "clone", [0x1000_0000 | high, 0, 0, 0, 0, 0]), eperm, "CLONE_NEWUSER");
        }
        assert_eq!(run(filter.instructions(), false, native.audit, X32 + 1, none), enosys, "x32");
        assert_eq!(run(filter.instructions(), false, 0xc000_00b7, 64, none), enosys, "a foreign architecture");
    }
}
