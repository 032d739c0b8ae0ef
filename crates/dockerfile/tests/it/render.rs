//! Compact text for what the parser returns, with spans as line:column.

use std::fmt::Write;

use build_engine_dockerfile::{
    Add, Command, Copy, Diagnostic, Healthcheck, Heredoc, Instruction, InstructionKind, Level, LineIndex, RunMount,
    Span, Spanned, Statement, parse, parse_syntax,
};

pub(crate) fn span(source: &str, span: Span) -> String {
    let index = LineIndex::new(source);
    let ((start_line, start), (end_line, end)) = (index.position(span.start), index.position(span.end));
    format!("{start_line}:{start}..{end_line}:{end}")
}

pub(crate) fn diagnostics(source: &str, found: &[Diagnostic]) -> String {
    let mut out = String::new();
    for diagnostic in found {
        let level = if diagnostic.level == Level::Error { "error" } else { "warn" };
        let _ = writeln!(out, "{level} {} {} {}", diagnostic.rule, span(source, diagnostic.span), diagnostic.message);
        if let Some(hint) = &diagnostic.hint {
            let _ = writeln!(out, "  hint {hint}");
        }
    }
    out
}

/// Statements and what is wrong with the syntax.
pub(crate) fn syntax(source: &str) -> String {
    let (syntax, found) = parse_syntax(source);
    let mut out = String::new();
    if syntax.escape != '\\' {
        let _ = writeln!(out, "escape {}", syntax.escape);
    }
    for directive in &syntax.directives {
        let _ =
            writeln!(out, "# {}={:?} {}", directive.name, directive.value.value, span(source, directive.value.span));
    }
    for found in &syntax.statements {
        let _ = writeln!(out, "{}-{} {}", found.start_line, found.end_line, statement(found));
    }
    out + &diagnostics(source, &found)
}

fn statement(statement: &Statement) -> String {
    let mut out = statement.name.clone();
    for flag in &statement.flags {
        let _ = write!(out, " [{}]", flag.value);
    }
    for arg in &statement.args {
        let _ = write!(out, " {:?}", arg.value);
    }
    if statement.exec_form {
        out.push_str(" json");
    }
    if let Some(trigger) = &statement.trigger {
        let _ = write!(out, " ({})", self::statement(trigger));
    }
    for heredoc in &statement.heredocs {
        out.push_str(&self::heredoc(heredoc));
    }
    if !statement.comments.is_empty() {
        let _ = write!(out, " {:?}", statement.comments);
    }
    out
}

fn heredoc(heredoc: &Heredoc) -> String {
    let mut out = String::from(" <<");
    if heredoc.fd != 0 {
        out.insert_str(1, &heredoc.fd.to_string());
    }
    if heredoc.chomp {
        out.push('-');
    }
    let name = if heredoc.expand { heredoc.name.clone() } else { format!("{:?}", heredoc.name) };
    let _ = write!(out, "{name} {:?}", heredoc.content);
    out
}

/// Stages and instructions and everything that is wrong.
pub(crate) fn instructions(source: &str) -> String {
    let (dockerfile, found) = parse(source);
    let mut out = String::new();
    for argument in &dockerfile.global_args {
        let _ = writeln!(out, "global {}", instruction(argument));
    }
    for stage in &dockerfile.stages {
        let _ = write!(out, "stage {}", stage.base);
        if let Some(name) = &stage.name {
            let _ = write!(out, " as {name}");
        }
        if let Some(platform) = &stage.platform {
            let _ = write!(out, " on {platform}");
        }
        out.push('\n');
        for found in &stage.instructions {
            let _ = writeln!(out, "  {}", instruction(found));
        }
    }
    out + &diagnostics(source, &found)
}

fn command(command: &Command) -> String {
    match command {
        Command::Shell(text) => format!("shell {text:?}"),
        Command::Exec(words) => format!("exec {words:?}"),
    }
}

fn list(words: &[Spanned<String>]) -> String {
    format!("{:?}", words.iter().map(|word| &word.value).collect::<Vec<_>>())
}

fn option(out: &mut String, name: &str, value: Option<&Spanned<String>>) {
    if let Some(value) = value {
        let _ = write!(out, " {name}={value}");
    }
}

fn mount(mount: &RunMount) -> String {
    let mut out = format!(" {}(", mount.kind.as_str());
    for (index, (key, value)) in mount.fields.iter().enumerate() {
        out.push_str(if index == 0 { "" } else { ", " });
        out.push_str(key);
        if let Some(value) = value {
            let _ = write!(out, "={value}");
        }
    }
    out.push(')');
    out
}

fn copy(copy: &Copy) -> String {
    let mut out = format!("copy {} -> {:?}", list(&copy.sources), copy.dest.value);
    option(&mut out, "from", copy.from.as_ref());
    option(&mut out, "chown", copy.chown.as_ref());
    option(&mut out, "chmod", copy.chmod.as_ref());
    if copy.link {
        out.push_str(" link");
    }
    if copy.parents {
        out.push_str(" parents");
    }
    if !copy.exclude.is_empty() {
        let _ = write!(out, " exclude={}", list(&copy.exclude));
    }
    copy.heredocs.iter().for_each(|found| out.push_str(&heredoc(found)));
    out
}

fn add(add: &Add) -> String {
    let mut out = format!("add {} -> {:?}", list(&add.sources), add.dest.value);
    option(&mut out, "chown", add.chown.as_ref());
    option(&mut out, "chmod", add.chmod.as_ref());
    option(&mut out, "checksum", add.checksum.as_ref());
    if add.link {
        out.push_str(" link");
    }
    if let Some(keep) = add.keep_git_dir {
        let _ = write!(out, " keep-git-dir={keep}");
    }
    if let Some(unpack) = add.unpack {
        let _ = write!(out, " unpack={unpack}");
    }
    if !add.exclude.is_empty() {
        let _ = write!(out, " exclude={}", list(&add.exclude));
    }
    add.heredocs.iter().for_each(|found| out.push_str(&heredoc(found)));
    out
}

fn instruction(instruction: &Instruction) -> String {
    match &instruction.kind {
        InstructionKind::Add(found) => add(found),
        InstructionKind::Arg(pairs) => {
            let mut out = String::from("arg");
            for pair in pairs {
                let _ = write!(out, " {}", pair.key);
                if let Some(value) = &pair.value {
                    let _ = write!(out, "={:?}", value.value);
                }
                if let Some(comment) = &pair.comment {
                    let _ = write!(out, " ({comment})");
                }
            }
            out
        }
        InstructionKind::Cmd(found) => format!("cmd {}", command(found)),
        InstructionKind::Copy(found) => copy(found),
        InstructionKind::Entrypoint(found) => format!("entrypoint {}", command(found)),
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
            let mut out =
                String::from(if matches!(instruction.kind, InstructionKind::Env(_)) { "env" } else { "label" });
            for pair in pairs {
                let _ = write!(out, " {}={:?}{}", pair.key, pair.value.value, if pair.legacy { " legacy" } else { "" });
            }
            out
        }
        InstructionKind::Expose(ports) => format!("expose {}", list(ports)),
        InstructionKind::Healthcheck(Healthcheck::None) => "healthcheck none".to_owned(),
        InstructionKind::Healthcheck(Healthcheck::Cmd {
            command: found,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        }) => {
            let mut out = format!("healthcheck {}", command(found));
            let durations =
                [("interval", interval), ("timeout", timeout), ("period", start_period), ("start", start_interval)];
            for (name, value) in durations {
                if let Some(value) = value {
                    let _ = write!(out, " {name}={value}ns");
                }
            }
            if let Some(retries) = retries {
                let _ = write!(out, " retries={retries}");
            }
            out
        }
        InstructionKind::Maintainer(name) => format!("maintainer {name}"),
        InstructionKind::Onbuild { expression, trigger } => {
            format!("onbuild {expression:?} = {}", self::instruction(trigger))
        }
        InstructionKind::Run(run) => {
            let mut out = format!("run {}", command(&run.command));
            run.mounts.iter().for_each(|found| out.push_str(&mount(found)));
            option(&mut out, "network", run.network.as_ref());
            option(&mut out, "security", run.security.as_ref());
            if !run.devices.is_empty() {
                let _ = write!(out, " devices={}", list(&run.devices));
            }
            run.heredocs.iter().for_each(|found| out.push_str(&heredoc(found)));
            out
        }
        InstructionKind::Shell(words) => format!("shell {words:?}"),
        InstructionKind::Stopsignal(signal) => format!("stopsignal {signal}"),
        InstructionKind::User(user) => format!("user {user}"),
        InstructionKind::Volume(paths) => format!("volume {}", list(paths)),
        InstructionKind::Workdir(path) => format!("workdir {path}"),
    }
}
