//! Capabilities of a step.
//!
//! Bounding, permitted and effective sets are equal; inheritable and ambient are empty. Where `USER` is not root the
//! kernel empties the effective and permitted sets at exec, and the bounding set limits what set-user-id programs get.

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::spec::Capabilities;
use crate::sys;

/// The capabilities of a profile, as bits by capability number.
pub(crate) fn set(profile: Capabilities) -> CapabilitySet {
    // The list of Docker, containerd and BuildKit (containerd, `oci/spec.go`, `defaultUnixCaps`).
    let docker = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FSETID
        | CapabilitySet::FOWNER
        | CapabilitySet::MKNOD
        | CapabilitySet::NET_RAW
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETPCAP
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::SYS_CHROOT
        | CapabilitySet::KILL
        | CapabilitySet::AUDIT_WRITE;
    match profile {
        Capabilities::Docker => docker,
        Capabilities::Hardened => docker - CapabilitySet::AUDIT_WRITE - CapabilitySet::MKNOD - CapabilitySet::NET_RAW,
        Capabilities::All => CapabilitySet::all(),
    }
}

/// Removes everything else from the bounding set. Needs `SETPCAP`.
pub(crate) fn limit_bounding(profile: Capabilities) -> std::io::Result<()> {
    let keep = set(profile).bits();
    for capability in 0..64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        match sys::drop_bounding(capability) {
            // Numbers from here on mean nothing to this kernel.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

/// Makes all permitted capabilities effective, after a change of user id.
pub(crate) fn raise() -> rustix::io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets)
}

/// Gives up what the profile does not have; everything when `root` is false.
pub(crate) fn give_up(profile: Capabilities, root: bool) -> rustix::io::Result<()> {
    let sets = rustix::thread::capabilities(None)?;
    let keep = if root { set(profile) & sets.permitted } else { CapabilitySet::empty() };
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_has_fourteen_and_hardened_eleven_without_admin() {
        assert_eq!(set(Capabilities::Docker).bits().count_ones(), 14);
        assert_eq!(set(Capabilities::Hardened).bits().count_ones(), 11);
        assert!(!set(Capabilities::Docker).contains(CapabilitySet::SYS_ADMIN));
    }
}
