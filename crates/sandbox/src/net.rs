//! The network of a step, and the files that go with it.
//!
//! A private network is a namespace with `pasta` as its way out: a user-mode program that copies packets, so that no
//! rule is ever left on the host. `pasta` runs in the worker's pid namespace and dies with it. Whether it works here
//! beyond what [`find`] sees is known when the first network was prepared ([`crate::prepared`]).

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::error::{Phase, SetupError};

/// The name server that `pasta` answers at, and forwards to the host's.
const DNS_FORWARD: &str = "169.254.1.53";

/// Finds `pasta`, if it is installed and can work; the error says why steps use the host's network, with the remedy.
pub(crate) fn find() -> Result<String, String> {
    let found = ["/usr/bin/pasta", "/usr/local/bin/pasta", "/bin/pasta"].iter().find(|path| Path::new(path).exists());
    let Some(&path) = found else {
        return Err(unavailable("pasta is not installed; fix: install the package `passt`"));
    };
    if let Err(e) = rustix::fs::access("/dev/net/tun", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK) {
        return Err(unavailable(&format!("/dev/net/tun cannot be opened ({e}); fix: sudo chmod 0666 /dev/net/tun")));
    }
    Ok(path.to_owned())
}

/// What the user reads when a step has less than a private network.
pub(crate) fn unavailable(why: &str) -> String {
    format!("build steps use the host's network: {why}")
}

/// Starts `pasta` for a network namespace, and the user namespace that owns it unless that is the worker's.
pub(crate) fn start(pasta: &str, network: &OwnedFd, user: Option<&OwnedFd>) -> Result<Child, SetupError> {
    let mut command = Command::new(pasta);
    command
        .args(["--config-net", "--foreground", "--quiet"])
        .args(run_as())
        // No ports in either direction; the host's loopback stays the host's.
        .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw"])
        .args(["--dns-forward", DNS_FORWARD]);
    // Namespaces are handed over open, as standard streams: pasta gives up the privilege to look them up by process.
    let copy = |fd: &OwnedFd| fd.try_clone().map(Stdio::from).phase(PHASE);
    command.stdin(copy(network)?).args(["--netns", "/proc/self/fd/0"]);
    match user {
        None => command.arg("--netns-only").stdout(Stdio::null()),
        Some(user) => command.stdout(copy(user)?).args(["--userns", "/proc/self/fd/1"]),
    };
    command.stderr(Stdio::piped()).spawn().phase(PHASE)
}

const PHASE: &str = "attach the network";

/// Real root's `pasta` would become `nobody`, who may neither join the step's namespaces nor open `/dev/net/tun`. It
/// confines itself (namespaces, system call filter) either way.
fn run_as() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &["--runas", "0"] } else { &[] }
}

/// Waits until the network namespace, which this process has joined, has a default route, or pasta has failed.
///
/// `pause` waits for a millisecond and tells whether to go on.
pub(crate) fn wait_for_route(pasta: &mut Child, pause: impl Fn() -> bool) -> Result<(), SetupError> {
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_secs(2) && pause() {
        if let Some(status) = pasta.try_wait().phase(PHASE)? {
            let mut text = String::new();
            if let Some(stderr) = pasta.stderr.take() {
                // Bounded, and not to the end: a child of pasta may hold the pipe.
                let mut bytes = [0; 4096];
                let n = stderr.take(4096).read(&mut bytes).unwrap_or(0);
                text = String::from_utf8_lossy(&bytes[..n]).into_owned();
            }
            let last = text.lines().last().map_or_else(|| status.to_string(), str::to_owned);
            return Err(SetupError::detail(PHASE, format!("pasta: {last}")));
        }
        let read = |file: &str| std::fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();
        let default_v4 = read("route").lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000"));
        let default_v6 = read("ipv6_route")
            .lines()
            .any(|line| line.starts_with("00000000000000000000000000000000 00") && !line.trim_end().ends_with(" lo"));
        if default_v4 || default_v6 {
            return Ok(());
        }
    }
    Err(SetupError::detail(PHASE, "pasta did not configure the network within two seconds"))
}

/// Ends `pasta`.
pub(crate) fn detach(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// `/etc/hosts` of a step, as BuildKit writes it.
pub(crate) fn hosts_file(hostname: &str, extra: &[(String, String)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// `/etc/resolv.conf` of a step: the host's for its network, without the servers that a private one cannot reach.
pub(crate) fn resolv_file(host: &str, private: bool) -> String {
    if !private {
        return host.to_owned();
    }
    let mut text = format!("nameserver {DNS_FORWARD}\n");
    for line in host.lines().filter(|line| line.starts_with("search") || line.starts_with("options")) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_hosts_follow_the_loopback_lines() {
        assert_eq!(
            hosts_file("box", &[("db".into(), "10.0.0.7".into())]),
            "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.7\tdb\n"
        );
    }

    #[test]
    fn a_private_network_asks_the_forwarder_and_keeps_search_domains() {
        let host = "nameserver 127.0.0.53\nsearch example.org\noptions edns0\n";
        assert_eq!(resolv_file(host, true), "nameserver 169.254.1.53\nsearch example.org\noptions edns0\n");
        assert_eq!(resolv_file(host, false), host);
    }
}
