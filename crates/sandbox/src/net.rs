//! The network of a step, and the files that go with it.
//!
//! A private network is a namespace with `pasta` as its way out: a user-mode program that copies packets, so that no
//! rule is ever left on the host. `pasta` runs in the worker's pid namespace and dies with it. Whether it works here
//! (it needs `/dev/net/tun`) is found out once for each worker by attaching it to an empty namespace.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::Serialize;

use crate::error::{Phase, SetupError};
use crate::worker::Ids;

/// Whether private networks have a way out on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Support {
    /// The program, when it works.
    pub pasta: Option<String>,
    /// Why steps use the host's network instead, with the remedy.
    pub note: Option<String>,
}

/// The name server that `pasta` answers at, and forwards to the host's.
const DNS_FORWARD: &str = "169.254.1.53";

/// Finds `pasta` and tries it on an empty network namespace.
pub(crate) fn probe() -> Support {
    let unavailable =
        |why: String| Support { pasta: None, note: Some(format!("build steps use the host's network: {why}")) };
    let found = ["/usr/bin/pasta", "/usr/local/bin/pasta", "/bin/pasta"].iter().find(|path| Path::new(path).exists());
    let Some(&path) = found else {
        return unavailable("pasta is not installed; fix: install the package `passt`".into());
    };
    if let Err(e) = rustix::fs::access("/dev/net/tun", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK) {
        return unavailable(format!("/dev/net/tun cannot be opened ({e}); fix: sudo chmod 0666 /dev/net/tun"));
    }
    match try_pasta(path) {
        Ok(()) => Support { pasta: Some(path.to_owned()), note: None },
        Err(text) => unavailable(format!("pasta does not work here: {text}")),
    }
}

/// Lets pasta make its own namespaces around a command that does nothing, for a second at most.
fn try_pasta(path: &str) -> Result<(), String> {
    let mut child = Command::new(path)
        .args(["--config-net", "--quiet"])
        .args(run_as())
        .args(["--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    for _ in 0..1000 {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(_)) => {
                let mut text = String::new();
                if let Some(stderr) = child.stderr.take() {
                    // Bounded, and not to the end: a child of pasta may hold the pipe.
                    let mut bytes = [0; 4096];
                    let n = stderr.take(4096).read(&mut bytes).unwrap_or(0);
                    text = String::from_utf8_lossy(&bytes[..n]).into_owned();
                }
                return Err(text.lines().last().unwrap_or("it failed without a message").to_owned());
            }
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(e) => return Err(e.to_string()),
        }
    }
    detach(&mut child);
    Err("it does not come up within a second".into())
}

/// Attaches `pasta` to the network namespace of `pid`.
///
/// The namespace is configured when this returns.
pub(crate) fn attach(pasta: &str, pid: i32, ids: Ids) -> Result<Child, SetupError> {
    let phase = "attach the network";
    let mut command = Command::new(pasta);
    command
        .args(["--config-net", "--foreground", "--quiet"])
        .args(run_as())
        // No ports in either direction; the host's loopback stays the host's.
        .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw"])
        .args(["--dns-forward", DNS_FORWARD]);
    // Namespaces are handed over open, as standard streams: pasta gives up the privilege to look them up by process.
    let netns = std::fs::File::open(format!("/proc/{pid}/ns/net")).phase(phase)?;
    command.stdin(Stdio::from(netns)).args(["--netns", "/proc/self/fd/0"]);
    if ids == Ids::Host {
        command.arg("--netns-only").stdout(Stdio::null());
    } else {
        let userns = std::fs::File::open(format!("/proc/{pid}/ns/user")).phase(phase)?;
        command.stdout(Stdio::from(userns)).args(["--userns", "/proc/self/fd/1"]);
    }
    let child = command.stderr(Stdio::piped()).spawn().phase(phase)?;
    wait_for_route(child, pid)
}

/// Real root's `pasta` would become `nobody`, who may neither join the step's namespaces nor open `/dev/net/tun`. It
/// confines itself (namespaces, system call filter) either way.
fn run_as() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &["--runas", "0"] } else { &[] }
}

/// Waits until the namespace has a default route, or pasta has failed.
fn wait_for_route(mut child: Child, pid: i32) -> Result<Child, SetupError> {
    let phase = "attach the network";
    for _ in 0..2000 {
        if let Some(_status) = child.try_wait().phase(phase)? {
            let mut text = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut text);
            }
            return Err(SetupError::detail(phase, format!("pasta: {}", text.trim())));
        }
        let v4 = std::fs::read_to_string(format!("/proc/{pid}/net/route")).unwrap_or_default();
        let v6 = std::fs::read_to_string(format!("/proc/{pid}/net/ipv6_route")).unwrap_or_default();
        let default_v4 = v4.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000"));
        let default_v6 = v6
            .lines()
            .any(|line| line.starts_with("00000000000000000000000000000000 00") && !line.trim_end().ends_with(" lo"));
        if default_v4 || default_v6 {
            return Ok(child);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(SetupError::detail(phase, "pasta did not configure the network within two seconds"))
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
