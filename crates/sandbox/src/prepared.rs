//! Prepared networks: a user namespace and a network namespace that it owns, with `pasta` attached.
//!
//! Making one takes longer than everything else of a small step, so a process of its own does it (the helper binary
//! with another first message), before or while steps need it, and keeps it for one step after another
//! ([`crate::pool`]). It ends `pasta` and itself when its control socket ends. Steps' helpers speak to it through a
//! copy of the other end of that socket: they ask for the namespaces, and at the end whether anything is left in them.
//!
//! Invariant: one step at a time uses a pair; what a step may have changed in it is never seen by another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::error::{Phase, SetupError};
use crate::helper::{self, write_maps};
use crate::sys::{self, Cloned};
use crate::worker::Ids;
use crate::{net, wire};

const PHASE: &str = "prepare a network";

/// What is to be made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    pub(crate) pasta: String,
    pub(crate) ids: Ids,
}

/// What a step's helper asks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// The namespaces, to enter them.
    Enter,
    /// Whether the step, which has ended, left nothing behind.
    Quiet,
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// With the descriptors in the order in which they are to be entered.
    Ready,
    /// There is no such network on this machine.
    Failed(SetupError),
    /// No socket is left that would be in the next step's way.
    Quiet(bool),
}

/// What became of the pair that a step was given.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum After {
    /// The step was given none, or connections of its own are still closing in it.
    Gone,
    /// Nothing is left in it.
    Clean,
    /// It could not be made; the note says why.
    Failed(String),
}

/// A finished pair.
struct Made {
    /// In the order in which they are to be entered.
    namespaces: Vec<OwnedFd>,
    pasta: Child,
}

/// Makes the pair and serves it until `control` ends.
pub(crate) fn serve(control: &OwnedFd, order: &Order) -> ! {
    let mut made = make(control, order);
    loop {
        if let Ok(made) = &mut made
            && !watch(control, &mut made.pasta)
        {
            break;
        }
        let Ok(Some((question, _))) = wire::receive::<Question>(control) else { break };
        let (answer, fds) = match (question, &made) {
            (Question::Enter, Ok(made)) => (Answer::Ready, made.namespaces.iter().map(AsFd::as_fd).collect()),
            (Question::Enter, Err(error)) => (Answer::Failed(error.clone()), Vec::new()),
            (Question::Quiet, made) => (Answer::Quiet(made.is_ok() && is_quiet()), Vec::<BorrowedFd<'_>>::new()),
        };
        if wire::send(control, &answer, &fds).is_err() {
            break;
        }
    }
    if let Ok(made) = &mut made {
        net::detach(&mut made.pasta);
    }
    sys::exit_now(0)
}

/// Waits for the next question, reading away what `pasta` says meanwhile; `false` when `pasta` has ended.
fn watch(control: &OwnedFd, pasta: &mut Child) -> bool {
    loop {
        let mut fds = vec![PollFd::new(control, PollFlags::IN)];
        fds.extend(pasta.stderr.as_ref().map(|stderr| PollFd::new(stderr, PollFlags::IN)));
        if poll(&mut fds, None).is_err_and(|e| e != rustix::io::Errno::INTR) {
            return false;
        }
        let ready = |i: usize| fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
        let (asked, said) = (ready(0), ready(1));
        if said && let Some(stderr) = &pasta.stderr {
            // Its end is the end of pasta: nothing else writes to it.
            match rustix::io::read(stderr, &mut [0; 4096]) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        if asked {
            return true;
        }
    }
}

fn make(control: &OwnedFd, order: &Order) -> Result<Made, SetupError> {
    let mut flags = libc::CLONE_NEWNET;
    if order.ids != Ids::Host {
        flags |= libc::CLONE_NEWUSER;
    }
    let (held, hold) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).phase(PHASE)?;
    let holder = match sys::clone_process(flags as u32 as u64).phase("create the network's namespaces")? {
        Cloned::Child => {
            drop(hold);
            let _ = rustix::io::read(&held, &mut [0; 1]);
            sys::exit_now(0)
        }
        Cloned::Parent { pid, pidfd } => helper::Child::new(pid, pidfd),
    };
    write_maps(order.ids, holder.pid())?;
    let open =
        |name: &str| std::fs::File::open(format!("/proc/{}/ns/{name}", holder.pid())).map(OwnedFd::from).phase(PHASE);
    let user = if order.ids == Ids::Host { None } else { Some(open("user")?) };
    let network = open("net")?;
    // From here on the descriptors keep the namespaces.
    drop((holder, hold));
    let mut pasta = net::start(&order.pasta, &network, user.as_ref())?;
    let result = move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(io::Error::from)
        .and_then(|()| sys::loopback_up())
        .phase("bring up the loopback device")
        .and_then(|()| net::wait_for_route(&mut pasta, || pause(control)));
    if let Err(error) = result {
        net::detach(&mut pasta);
        return Err(error);
    }
    Ok(Made { namespaces: user.into_iter().chain([network]).collect(), pasta })
}

/// Waits for a millisecond; `false` when nobody wants the network any more.
fn pause(control: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(control, PollFlags::RDHUP)];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 }));
    fds[0].revents().is_empty()
}

/// Whether the network namespace, which this process has joined, holds no connection.
///
/// Processes of the step are gone with their sockets, but connections that it closed stay for a minute, and another
/// step could not listen at their ports. (In a namespace of its own it could, so that pair is not used again.)
fn is_quiet() -> bool {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/net/{file}"));
    read("sockstat").is_ok_and(|v4| no_connections(&v4) && read("sockstat6").map_or(true, |v6| no_connections(&v6)))
}

/// Whether the text of `/proc/net/sockstat` or `sockstat6` counts no TCP socket that has a port.
fn no_connections(sockstat: &str) -> bool {
    sockstat.lines().filter(|line| line.starts_with("TCP")).all(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let count = |name: &str| words.iter().position(|w| *w == name).and_then(|at| words.get(at + 1)).copied();
        count("inuse") == Some("0") && count("tw").is_none_or(|n| n == "0")
    })
}

#[cfg(test)]
mod tests {
    use super::no_connections;

    #[test]
    fn connections_that_are_closing_count_and_unused_sockets_do_not() {
        let v4 = "sockets: used 9\nTCP: inuse 0 orphan 0 tw 0 alloc 3 mem 0\nUDP: inuse 1 mem 0\n";
        assert!(no_connections(v4));
        assert!(!no_connections(&v4.replace("tw 0", "tw 2")));
        assert!(!no_connections(&v4.replace("TCP: inuse 0", "TCP: inuse 1")));
        assert!(no_connections("TCP6: inuse 0\nUDP6: inuse 4\n"));
        assert!(!no_connections("TCP6: inuse 10\n"));
    }
}
