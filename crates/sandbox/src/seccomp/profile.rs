//! From the profile's document to a verdict for each call of an architecture.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::CompileError;

const DEFAULT: &str = include_str!("../../data/seccomp-default.json");

/// An architecture that filters can be made for, with the one that its kernel also runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// amd64, with i386.
    X86_64,
    /// arm64, with 32-bit arm.
    Aarch64,
    /// 64-bit PowerPC, little-endian.
    Ppc64le,
    /// IBM Z.
    S390x,
    /// 64-bit RISC-V.
    Riscv64,
}

/// A call table: the kernel's name for it in filters, and the numbers.
pub(crate) struct Table {
    pub(crate) audit: u32,
    pub(crate) number: fn(&str) -> Option<u32>,
    pub(crate) known: Vec<u32>,
}

macro_rules! table {
    ($audit:expr, $module:ident) => {
        Table {
            audit: $audit,
            number: |name| name.parse::<syscalls::$module::Sysno>().ok().map(|call| call.id() as u32),
            known: syscalls::$module::Sysno::iter().map(|call| call.id() as u32).collect(),
        }
    };
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::X86_64, Self::Aarch64, Self::Ppc64le, Self::S390x, Self::Riscv64];

    /// The one that this program was compiled for.
    pub fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            "powerpc64" if cfg!(target_endian = "little") => Some(Self::Ppc64le),
            "s390x" => Some(Self::S390x),
            "riscv64" => Some(Self::Riscv64),
            _ => None,
        }
    }

    /// The name that the profile uses.
    fn profile_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
            Self::Ppc64le => "ppc64le",
            Self::S390x => "s390x",
            Self::Riscv64 => "riscv64",
        }
    }

    pub(crate) fn big_endian(self) -> bool {
        self == Self::S390x
    }

    /// Numbers of the native table and of the one for 32-bit programs. (`AUDIT_ARCH_*` of `linux/audit.h`.)
    pub(crate) fn tables(self) -> Vec<Table> {
        match self {
            Self::X86_64 => vec![table!(0xc000_003e, x86_64), table!(0x4000_0003, x86)],
            Self::Aarch64 => vec![table!(0xc000_00b7, aarch64), table!(0x4000_0028, arm)],
            Self::Ppc64le => vec![table!(0xc000_0015, powerpc64)],
            Self::S390x => vec![table!(0x8000_0016, s390x)],
            Self::Riscv64 => vec![table!(0xc000_00f3, riscv64)],
        }
    }
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Allow,
    /// It fails with this error number.
    Errno(u16),
    /// It is made if all conditions of one of the lists hold, and fails with `EPERM` otherwise.
    AllowIf(Vec<Vec<Condition>>),
    /// It is made if all conditions of one of the lists hold, and otherwise seems to succeed and does nothing.
    PretendUnless(Vec<Vec<Condition>>),
}

/// A comparison of the low 32 bits of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub index: u8,
    /// How.
    pub comparison: Comparison,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal(u32),
    /// Not equal.
    NotEqual(u32),
    /// Less, unsigned.
    Less(u32),
    /// Less or equal, unsigned.
    LessOrEqual(u32),
    /// Greater, unsigned.
    Greater(u32),
    /// Greater or equal, unsigned.
    GreaterOrEqual(u32),
    /// Equal after masking.
    Masked {
        /// The mask.
        mask: u32,
        /// What remains.
        value: u32,
    },
}

/// The verdicts of one table. A call that is absent is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The table's name in filters.
    pub audit: u32,
    /// By call number.
    pub verdicts: BTreeMap<u32, Verdict>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: u16,
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Vec<Argument>,
    #[serde(default)]
    includes: Selection,
    #[serde(default)]
    excludes: Selection,
    #[serde(rename = "comment", default)]
    _comment: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selection {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Evaluates the default profile. Returns the native table first. With `one_id` the owner of a file cannot change.
///
/// # Errors
/// See [`CompileError`].
pub fn rules(
    architecture: Architecture,
    caps: u64,
    kernel: (u32, u32),
    one_id: bool,
) -> Result<Vec<Rules>, CompileError> {
    let profile: Profile = serde_json::from_str(DEFAULT)?;
    let unsupported = |rule: &Rule, what: String| CompileError::Unsupported {
        name: rule.names.first().cloned().unwrap_or_default(),
        what,
    };
    if profile.default_action != "SCMP_ACT_ERRNO" {
        return Err(CompileError::Unsupported { name: "*".into(), what: profile.default_action });
    }
    let mut all = Vec::new();
    for table in architecture.tables() {
        let refused = Verdict::Errno(profile.default_errno_ret);
        let mut verdicts: BTreeMap<u32, Verdict> = table.known.iter().map(|&n| (n, refused.clone())).collect();
        for rule in &profile.syscalls {
            if !applies(rule, architecture, caps, kernel).map_err(|what| unsupported(rule, what))? {
                continue;
            }
            let conditions = rule
                .args
                .iter()
                .map(condition)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|what| unsupported(rule, what))?;
            for number in rule.names.iter().filter_map(|name| (table.number)(name)) {
                let Some(verdict) = verdicts.get_mut(&number) else { continue };
                match (rule.action.as_str(), rule.errno_ret) {
                    ("SCMP_ACT_ALLOW", None) if conditions.is_empty() => *verdict = Verdict::Allow,
                    ("SCMP_ACT_ALLOW", None) => match verdict {
                        Verdict::Allow => {}
                        Verdict::AllowIf(lists) => lists.push(conditions.clone()),
                        Verdict::Errno(_) => *verdict = Verdict::AllowIf(vec![conditions.clone()]),
                        // Comes later, and only over what is allowed.
                        Verdict::PretendUnless(_) => {}
                    },
                    ("SCMP_ACT_ERRNO", Some(errno)) if conditions.is_empty() => {
                        if *verdict == refused {
                            *verdict = Verdict::Errno(errno);
                        }
                    }
                    (action, _) => return Err(unsupported(rule, format!("the action {action}"))),
                }
            }
        }
        if one_id {
            for (name, owner) in CHANGES_OF_OWNER {
                let number = (table.number)(name);
                if let Some(verdict) = number.and_then(|number| verdicts.get_mut(&number))
                    && *verdict == Verdict::Allow
                {
                    *verdict = Verdict::PretendUnless(own_or_none(owner));
                }
            }
        }
        if let Some(number) = (table.number)("socketcall") {
            verdicts.insert(number, Verdict::Errno(libc::ENOSYS as u16));
        }
        all.push(Rules { audit: table.audit, verdicts });
    }
    Ok(all)
}

/// The calls that change an owner, and which argument is the user; the next one is the group.
const CHANGES_OF_OWNER: [(&str, u8); 7] =
    [("chown", 1), ("fchown", 1), ("lchown", 1), ("fchownat", 2), ("chown32", 1), ("fchown32", 1), ("lchown32", 1)];

/// User and group are each 0 or -1, which leaves the owner alone.
fn own_or_none(owner: u8) -> Vec<Vec<Condition>> {
    let is = |index, value| Condition { index, comparison: Comparison::Equal(value) };
    let pair = |user, group| vec![is(owner, user), is(owner + 1, group)];
    vec![pair(0, 0), pair(0, u32::MAX), pair(u32::MAX, 0), pair(u32::MAX, u32::MAX)]
}

fn applies(rule: &Rule, architecture: Architecture, caps: u64, kernel: (u32, u32)) -> Result<bool, String> {
    let has = |name: &String| match CAPABILITIES.iter().position(|known| known == name) {
        Some(bit) => Ok(caps & (1 << bit) != 0),
        None => Err(format!("the capability {name}")),
    };
    let here = |names: &[String]| names.iter().any(|name| name == architecture.profile_name());
    if let Some(minimum) = &rule.includes.min_kernel {
        let (major, minor) = minimum.split_once('.').ok_or_else(|| format!("the kernel {minimum}"))?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("the kernel {minimum}"));
        if kernel < (number(major)?, number(minor)?) {
            return Ok(false);
        }
    }
    if rule.excludes.min_kernel.is_some() {
        return Err("an excluded kernel".into());
    }
    let included = rule.includes.caps.iter().map(has).collect::<Result<Vec<_>, _>>()?;
    let excluded = rule.excludes.caps.iter().map(has).collect::<Result<Vec<_>, _>>()?;
    Ok(included.iter().all(|&has| has)
        && !excluded.contains(&true)
        && (rule.includes.arches.is_empty() || here(&rule.includes.arches))
        && !here(&rule.excludes.arches))
}

fn condition(argument: &Argument) -> Result<Condition, String> {
    let low = |value: u64| u32::try_from(value).map_err(|_| format!("the 64-bit value {value:#x}"));
    let value = low(argument.value)?;
    let comparison = match argument.op.as_str() {
        "SCMP_CMP_EQ" => Comparison::Equal(value),
        "SCMP_CMP_NE" => Comparison::NotEqual(value),
        "SCMP_CMP_LT" => Comparison::Less(value),
        "SCMP_CMP_LE" => Comparison::LessOrEqual(value),
        "SCMP_CMP_GT" => Comparison::Greater(value),
        "SCMP_CMP_GE" => Comparison::GreaterOrEqual(value),
        "SCMP_CMP_MASKED_EQ" => Comparison::Masked { mask: value, value: low(argument.value_two)? },
        other => return Err(format!("the comparison {other}")),
    };
    if argument.index > 5 {
        return Err(format!("the argument {}", argument.index));
    }
    Ok(Condition { index: argument.index, comparison })
}

/// By number, as in `linux/capability.h`.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];
