//! The command line of build-engine.
//!
//! It gathers flags, settings and files into a request, hands it to the engine, and shows what comes back: events through
//! [`ui`], failures through [`errors`], data on standard output. It decides nothing about builds.
//!
//! The same binary is also the engine's worker and its step helper, told apart by a hidden first argument; they branch off
//! before anything else happens, while the process has one thread.
//!
//! Invariants: data goes to standard output and talk to standard error; every way out has one of the documented exit
//! codes; only [`settings`] reads the environment.

mod commands;
mod errors;
mod output;
mod session;
mod settings;
mod template;
mod ui;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Mutex;

use build_engine_engine::{BuildError, embedded};
use clap::Parser;

use crate::errors::Failure;
use crate::settings::Settings;

/// Where and why a thread panicked first.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

fn main() -> ExitCode {
    match std::env::args_os().nth(1).as_deref().and_then(std::ffi::OsStr::to_str) {
        Some(embedded::WORKER_ARG) => embedded::worker_main(),
        Some(embedded::STEP_ARG) => embedded::step_main(),
        _ => {}
    }
    std::panic::set_hook(Box::new(|info| {
        let mut first = PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        first.get_or_insert_with(|| info.to_string());
    }));
    let code = std::panic::catch_unwind(AssertUnwindSafe(face)).unwrap_or_else(|_| {
        ui::tty::restore();
        let cause = PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take().unwrap_or_default();
        let mut error = BuildError::internal("build-engine made a mistake and stopped");
        if let Some(report) = error.reports.first_mut() {
            report.causes = vec![cause];
            report.hint = Some("this is a bug; please report it with the Dockerfile that shows it".into());
        }
        show(&error.into(), settings::early_style(&|name| std::env::var_os(name)))
    });
    ExitCode::from(code)
}

/// Runs the command line; returns the exit code.
fn face() -> u8 {
    let env = |name: &str| std::env::var_os(name);
    let cli = match commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output and is no failure; that its reader may be gone is none either.
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    let is_root = rustix::process::geteuid().is_root();
    let settings = match Settings::gather(&cli.global, &env, is_root) {
        Ok(settings) => settings,
        Err(failure) => return show(&failure, settings::early_style(&env)),
    };
    if settings.debug {
        listen(settings.colour);
    }
    match cli.command.run(&settings, &env) {
        Ok(code) => code,
        Err(failure) => show(&failure, settings.style()),
    }
}

fn show(failure: &Failure, style: errors::Style) -> u8 {
    ui::to_stderr(&errors::render(&failure.error, style));
    failure.code
}

/// Shows developers' messages on standard error.
fn listen(colour: bool) {
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_env_filter(tracing_subscriber::EnvFilter::new("build_engine=trace,debug"))
        .try_init();
}
