//! Programs of other architectures, run by the user mode of qemu.
//!
//! Three ways lead to a foreign program: the processor runs it by itself; the host's `binfmt_misc` has an emulator with
//! the flag `F`, whose file was opened when it was registered, so that it serves in every root; or the step registers
//! one in a `binfmt_misc` of its own user namespace (Linux 6.7), which the host and other steps never see. That instance
//! lives as long as its mount, which is attached nowhere: the step's helper holds its descriptor.
//!
//! Neighbours: [`crate::Launcher`] says which way a step goes; `step` registers while it still has the host's root.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::error::{Phase, SetupError};
use crate::mounts::{new_fs, strict};
use crate::worker::Ids;

/// An architecture by OCI's name, with what stands in the head of its programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Machine {
    oci: &'static str,
    /// As `uname -m` and qemu name it.
    qemu: &'static str,
    bits: u8,
    big_endian: bool,
    /// `e_machine` of the ELF header (`linux/elf-em.h`).
    number: u16,
}

const fn machine(oci: &'static str, qemu: &'static str, bits: u8, big_endian: bool, number: u16) -> Machine {
    Machine { oci, qemu, bits, big_endian, number }
}

const MACHINES: &[Machine] = &[
    machine("386", "i386", 32, false, 3),
    machine("amd64", "x86_64", 64, false, 62),
    machine("arm", "arm", 32, false, 40),
    machine("arm64", "aarch64", 64, false, 183),
    machine("loong64", "loongarch64", 64, false, 258),
    machine("mips", "mips", 32, true, 8),
    machine("mips64", "mips64", 64, true, 8),
    machine("mips64le", "mips64el", 64, false, 8),
    machine("mipsle", "mipsel", 32, false, 8),
    machine("ppc", "ppc", 32, true, 20),
    machine("ppc64", "ppc64", 64, true, 21),
    machine("ppc64le", "ppc64le", 64, false, 21),
    machine("riscv64", "riscv64", 64, false, 243),
    machine("s390x", "s390x", 64, true, 22),
    machine("sparc64", "sparc64", 64, true, 43),
];

/// Where a distribution installs emulators.
const DIRECTORIES: &[&str] = &["/usr/bin", "/usr/local/bin", "/bin", "/usr/libexec/qemu-binfmt"];

/// The first kernel whose `binfmt_misc` can be mounted in a user namespace.
const OWN_REGISTRY_SINCE: (u32, u32) = (6, 7);

const HEAD: usize = 20;

impl Machine {
    fn find(architecture: &str) -> Option<&'static Self> {
        MACHINES.iter().find(|machine| machine.oci == architecture)
    }

    /// The first bytes of an executable, as the ELF specification lays them out.
    fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', if self.bits == 64 { 2 } else { 1 }, 1, 1]);
        let bytes = |number: u16| if self.big_endian { number.to_be_bytes() } else { number.to_le_bytes() };
        if self.big_endian {
            head[5] = 2;
        }
        head[16..18].copy_from_slice(&bytes(2));
        head[18..20].copy_from_slice(&bytes(self.number));
        head
    }

    /// Which of those bytes tell: not the ABI and its version, and not whether it is position-independent (3 for 2).
    fn mask(&self) -> [u8; HEAD] {
        let mut mask = [0xff; HEAD];
        mask[7..16].fill(0);
        mask[if self.big_endian { 17 } else { 16 }] = 0xfe;
        mask
    }

    /// What registers `interpreter` for this machine.
    ///
    /// `F` opens it now, `O` hands it the program open, `C` takes the program's identity and not its own (so that `su`
    /// works), `P` keeps the program's own `argv[0]`.
    fn registration(&self, interpreter: &str) -> String {
        let text = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        format!(":{}:M::{}:{}:{interpreter}:POCF", self.qemu, text(&self.head()), text(&self.mask()))
    }

    fn programs(&self) -> [String; 2] {
        [format!("qemu-{}-static", self.qemu), format!("qemu-{}", self.qemu)]
    }
}

/// How programs of an architecture run on this machine.
#[derive(Debug)]
pub enum Execution {
    /// The processor runs them.
    Native,
    /// The host's registry has an emulator for them, by this name.
    Registered(String),
    /// This emulator runs them, if the step registers it.
    Own(Emulator),
}

/// An emulator that a step can register.
#[derive(Debug)]
pub struct Emulator {
    /// Its path on the host, to be shown.
    pub path: String,
    /// It, open.
    pub file: OwnedFd,
}

/// Why an architecture cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEmulator {
    /// Nothing is known of it.
    #[error("there is no emulator for programs of `{0}`")]
    Unknown(String),
    /// No usable program was found.
    #[error("programs of `{architecture}` need the emulator `{program}`, which is not installed{}", .dynamic.as_ref().map(|path| format!(" (`{path}` is not statically linked)")).unwrap_or_default())]
    NotInstalled {
        /// OCI's name.
        architecture: String,
        /// The program that was looked for.
        program: String,
        /// One that was found, but needs libraries that a step's root does not have.
        dynamic: Option<String>,
    },
    /// The kernel has one registry only.
    #[error("programs of `{0}` need an emulator in the kernel's registry, and none is registered with the flag F")]
    OldKernel(String),
    /// Steps share the host's user namespace, whose registry is left alone.
    #[error("with `--userns=host`, programs of `{0}` need an emulator in the host's registry")]
    HostNamespace(String),
}

impl NoEmulator {
    /// The way out.
    pub fn hint(&self) -> String {
        const REGISTER: &str = "register one with binfmt_misc and the flag F (the packages `qemu-user-static` and \
                                `binfmt-support` do)";
        match self {
            Self::Unknown(_) => "build for another platform, or copy what was made elsewhere".into(),
            Self::NotInstalled { .. } => "install the package `qemu-user-static`".into(),
            Self::OldKernel(_) => {
                let (major, minor) = OWN_REGISTRY_SINCE;
                format!("{REGISTER}; from Linux {major}.{minor} on, an installed qemu is enough")
            }
            Self::HostNamespace(_) => format!("{REGISTER}, or leave `--userns=host` out"),
        }
    }
}

/// The emulators of this machine.
#[derive(Debug)]
pub struct Emulators {
    /// The host's registry, opened where it was visible.
    registry: Option<OwnedFd>,
    ids: Ids,
}

impl Emulators {
    pub(crate) fn new(registry: Option<OwnedFd>, ids: Ids) -> Self {
        Self { registry, ids }
    }

    /// How programs of `architecture` (OCI's name) run here.
    ///
    /// # Errors
    /// [`NoEmulator`] where they do not.
    pub fn execution(&self, architecture: &str) -> Result<Execution, NoEmulator> {
        if is_native(architecture) {
            return Ok(Execution::Native);
        }
        let Some(machine) = Machine::find(architecture) else { return Err(NoEmulator::Unknown(architecture.into())) };
        if let Some(entry) = self.registered().into_iter().find(|entry| entry.serves(machine)) {
            return Ok(Execution::Registered(entry.name));
        }
        if self.ids == Ids::Host {
            return Err(NoEmulator::HostNamespace(architecture.into()));
        }
        if kernel() < OWN_REGISTRY_SINCE {
            return Err(NoEmulator::OldKernel(architecture.into()));
        }
        find(machine).map(Execution::Own)
    }

    fn registered(&self) -> Vec<Entry> {
        self.registry.as_ref().map(|registry| entries(registry.as_fd())).unwrap_or_default()
    }

    /// What runs here, for people: each platform, and what runs it.
    pub(crate) fn platforms(&self) -> Vec<String> {
        let each = MACHINES.iter().filter_map(|machine| {
            Some(match self.execution(machine.oci).ok()? {
                Execution::Native => format!("linux/{}", machine.oci),
                Execution::Registered(name) => format!("linux/{} (registered: {name})", machine.oci),
                Execution::Own(emulator) => format!("linux/{} ({})", machine.oci, emulator.path),
            })
        });
        each.collect()
    }
}

/// Opens the registry that this process sees. To be called before a new `/proc` covers it.
pub(crate) fn open_registry() -> Option<OwnedFd> {
    // O_DIRECTORY, so that one that systemd mounts on demand is mounted.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/sys/fs/binfmt_misc", flags, Mode::empty()).ok()
}

fn is_native(architecture: &str) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => matches!(architecture, "amd64" | "386"),
        "x86" => architecture == "386",
        "aarch64" => architecture == "arm64" || (architecture == "arm" && crate::sys::runs_32_bit()),
        "powerpc64" => architecture == if cfg!(target_endian = "big") { "ppc64" } else { "ppc64le" },
        "loongarch64" => architecture == "loong64",
        other => architecture == other,
    }
}

fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Finds a statically linked emulator.
fn find(machine: &Machine) -> Result<Emulator, NoEmulator> {
    let programs = machine.programs();
    let mut dynamic = None;
    for directory in DIRECTORIES {
        for program in &programs {
            let path = format!("{directory}/{program}");
            let Ok(file) = std::fs::File::open(&path) else { continue };
            if is_static(&file) {
                return Ok(Emulator { path, file: file.into() });
            }
            dynamic.get_or_insert(path);
        }
    }
    let [program, _] = programs;
    Err(NoEmulator::NotInstalled { architecture: machine.oci.into(), program, dynamic })
}

/// Whether a program of this host needs no loader: a step's root has none for it.
fn is_static(file: &std::fs::File) -> bool {
    use std::os::unix::fs::FileExt;
    const LOADER: u32 = 3;
    let mut head = [0; 64];
    if file.read_exact_at(&mut head, 0).is_err() || !head.starts_with(b"\x7fELF") {
        return false;
    }
    // Programs of the host have its own word size and byte order; others would not run anyway.
    let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
    let (table, size, count) = if head[4] == 2 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[32..40]);
        (u64::from_ne_bytes(bytes), half(54), half(56))
    } else {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&head[28..32]);
        (u64::from(u32::from_ne_bytes(bytes)), half(42), half(44))
    };
    (0..u64::from(count)).all(|index| {
        let mut kind = [0; 4];
        let at = index.checked_mul(u64::from(size)).and_then(|offset| table.checked_add(offset));
        at.is_some_and(|at| file.read_exact_at(&mut kind, at).is_ok()) && u32::from_ne_bytes(kind) != LOADER
    })
}

/// Something in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    flags: String,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Entry {
    /// Reads the text that the kernel shows of an entry; `None` for one that is disabled or goes by file names.
    fn parse(name: &str, text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some("enabled") {
            return None;
        }
        let mut entry =
            Self { name: name.into(), flags: String::new(), offset: 0, magic: Vec::new(), mask: Vec::new() };
        for line in lines {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "flags:" => entry.flags = value.trim().into(),
                "offset" => entry.offset = value.trim().parse().ok()?,
                "magic" => entry.magic = hex(value)?,
                "mask" => entry.mask = hex(value)?,
                _ => {}
            }
        }
        (!entry.magic.is_empty()).then_some(entry)
    }

    /// Whether it recognises programs of `machine`, and works in every root.
    fn serves(&self, machine: &Machine) -> bool {
        let head = machine.head();
        self.flags.contains('F')
            && self.magic.iter().enumerate().all(|(index, wanted)| {
                let mask = self.mask.get(index).copied().unwrap_or(0xff);
                // What lies behind the head differs between programs, so only a mask that skips it will do.
                match head.get(self.offset + index) {
                    Some(byte) => byte & mask == wanted & mask,
                    None => mask == 0,
                }
            })
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

fn entries(registry: BorrowedFd<'_>) -> Vec<Entry> {
    use std::io::Read;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(listing) = rustix::fs::openat(registry, ".", flags | OFlags::DIRECTORY, Mode::empty())
        .and_then(|directory| rustix::fs::Dir::read_from(&directory))
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for name in listing.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        if matches!(name.as_str(), "." | ".." | "register" | "status") {
            continue;
        }
        let mut text = String::new();
        if let Ok(file) = rustix::fs::openat(registry, &name, flags, Mode::empty())
            && std::fs::File::from(file).take(64 << 10).read_to_string(&mut text).is_ok()
        {
            found.extend(Entry::parse(&name, &text));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Registers `emulator` for `architecture` in the user namespace of this process, which is its root. It stays registered
/// as long as the returned mount does. `directory` is the working directory, where a link to it is made.
pub(crate) fn register(
    architecture: &str,
    emulator: &OwnedFd,
    directory: BorrowedFd<'_>,
) -> Result<OwnedFd, SetupError> {
    let phase = "register the emulator";
    let machine = Machine::find(architecture)
        .ok_or_else(|| SetupError::detail(phase, format!("`{architecture}` is not known")))?;
    let registry = new_fs("binfmt_misc", &[], strict()).phase("mount a registry of emulators")?;
    let file =
        rustix::fs::openat(&registry, "register", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).phase(phase)?;
    // Found from the working directory, once: what programs see of their emulator is this name.
    let name = format!("qemu-{}", machine.qemu);
    rustix::fs::symlinkat(format!("/proc/self/fd/{}", emulator.as_raw_fd()), directory, &name).phase(phase)?;
    rustix::io::write(&file, machine.registration(&name).as_bytes()).phase(phase)?;
    Ok(registry)
}

/// Whether anything is known of `architecture`.
pub(crate) fn is_known(architecture: &str) -> bool {
    Machine::find(architecture).is_some()
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("the processor"),
            Self::Registered(name) => write!(f, "the registered emulator `{name}`"),
            Self::Own(emulator) => write!(f, "`{}`", emulator.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian's `qemu-user-static` registers it, with the words of the kernel.
    const AARCH64: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POF\noffset 0\n\
                           magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn serves(text: &str) -> Vec<&'static str> {
        let Some(entry) = Entry::parse("x", text) else { return Vec::new() };
        MACHINES.iter().filter(|machine| entry.serves(machine)).map(|machine| machine.oci).collect()
    }

    #[test]
    fn an_entry_of_the_host_serves_the_machine_whose_programs_it_recognises() {
        assert_eq!(serves(AARCH64), ["arm64"]);
        assert!(serves(&AARCH64.replace("enabled", "disabled")).is_empty());
        // Without F the interpreter is looked for in the step's own root.
        assert!(serves(&AARCH64.replace("POF", "PO")).is_empty());
        let arm = AARCH64.replace("0201010", "0101010").replace("b700", "2800");
        assert_eq!(serves(&arm), ["arm"]);
        let s390x = "enabled\ninterpreter /x\nflags: F\noffset 0\nmagic 7f454c4602020100000000000000000000020016\n\
                     mask ffffffffffffff00fffffffffffffffffffeffff\n";
        assert_eq!(serves(s390x), ["s390x"]);
        assert!(serves("enabled\ninterpreter /usr/bin/python3\nflags: \nextension .pyc\n").is_empty());
    }

    /// Magic and mask as `qemu-binfmt-conf.sh` of qemu has them, apart from the bytes that the mask skips here.
    #[test]
    fn heads_are_those_of_elf_programs() {
        let head = |name: &str| {
            let machine = Machine::find(name).unwrap();
            machine.head().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        for (name, expected) in [
            ("arm64", "7f454c460201010000000000000000000200b700"),
            ("arm", "7f454c4601010100000000000000000002002800"),
            ("ppc64le", "7f454c4602010100000000000000000002001500"),
            ("ppc64", "7f454c4602020100000000000000000000020015"),
            ("s390x", "7f454c4602020100000000000000000000020016"),
            ("riscv64", "7f454c460201010000000000000000000200f300"),
            ("loong64", "7f454c4602010100000000000000000002000201"),
            ("mips64le", "7f454c4602010100000000000000000002000800"),
            ("386", "7f454c4601010100000000000000000002000300"),
            ("amd64", "7f454c4602010100000000000000000002003e00"),
        ] {
            assert_eq!(head(name), expected, "{name}");
        }
    }

    #[test]
    fn no_two_machines_are_taken_for_each_other() {
        for one in MACHINES {
            for other in MACHINES.iter().filter(|other| *other != one) {
                let (head, mask) = (other.head(), one.mask());
                let same = one.head().iter().zip(head).zip(mask).all(|((a, b), mask)| a & mask == b & mask);
                assert!(!same, "{} and {}", one.oci, other.oci);
            }
        }
        let shared = Machine::find("s390x").unwrap().registration("/proc/self/fd/9");
        assert!(shared.len() < 1920, "the kernel takes no longer ones");
    }

    #[test]
    fn this_machine_runs_its_own_programs() {
        let emulators = Emulators::new(None, Ids::Host);
        let own = if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH };
        if cfg!(target_arch = "x86_64") {
            assert!(matches!(emulators.execution(own), Ok(Execution::Native)));
            assert!(matches!(emulators.execution("386"), Ok(Execution::Native)));
        }
        assert_eq!(emulators.execution("z80").unwrap_err(), NoEmulator::Unknown("z80".into()));
        assert!(is_static(&std::fs::File::open("/bin/busybox").unwrap()) || !cfg!(target_os = "linux"));
        assert!(!is_static(&std::fs::File::open("/proc/self/exe").unwrap()));
    }
}
