//! Runs the processes of build steps, confined.
//!
//! Three kinds of process take part, all the same binary:
//!
//! - the **worker** ([`worker::enter`]) enters a user, mount and pid namespace before it starts any thread, and then
//!   runs any number of builds;
//! - a **helper** ([`helper_main`]), one for each step, started by [`Launcher::spawn`] from a sealed copy of the
//!   binary in memory. It is single-threaded, so it may clone; it maps ids, makes the control group, waits, and cleans
//!   up what the step must not leave in its tree. Helpers of a second kind prepare networks for the steps to enter;
//! - the **step**, cloned by the helper into namespaces of its own, mounts everything, gives up its privileges and
//!   executes the command as pid 1.
//!
//! Nothing outlives the worker: steps and helpers are in its pid namespace, mounts are in private mount namespaces.
//!
//! Invariant: all `unsafe` of the project is in this crate's `sys` module.

pub mod cgroup;
pub mod emulation;
pub mod host;
pub mod seccomp;
pub mod worker;

mod caps;
mod error;
mod helper;
mod inherit;
mod launcher;
mod mounts;
mod net;
mod pool;
mod prepared;
mod spec;
mod step;
mod stubs;
mod sys;
mod wire;

pub use error::{SandboxError, SetupError};
pub use helper::{HELPER_ARG, helper_main};
pub use inherit::inherited_fd;
pub use launcher::{Killer, Launcher, Step};
pub use spec::{
    Capabilities, Changes, Confinement, Exit, ExitStatus, Limits, Mount, MountSource, Network, Root, StepFds, StepSpec,
    Swap, Ulimit, Usage,
};
