//! `--frontend-opt NAME=VALUE`: BuildKit's attributes of the Dockerfile frontend, as the flags that they stand for.
//!
//! What an attribute asks for is then judged as the flag would be, so that what is refused there is refused here. An attribute
//! that says something else than its flag, and one that is not known, are refused by name.
//!
//! Source: BuildKit `frontend/dockerui` and `frontend/attestations`, the keys that they look up.

use std::path::Path;

use super::flags::{self, Flags};
use crate::commands::build;

/// Puts every attribute where its flag would be; says of those where that is not possible what is wrong with them.
pub(super) fn apply(flags: &mut Flags) -> Vec<(String, String)> {
    let mut refused = Vec::new();
    for text in std::mem::take(&mut flags.other.frontend_opt) {
        let (name, value) = text.split_once('=').unwrap_or((&text, ""));
        if let Err(reason) = one(flags, name, value) {
            refused.push((text.clone(), reason));
        }
    }
    refused
}

fn one(flags: &mut Flags, name: &str, value: &str) -> Result<(), String> {
    if let Some((kind, key)) = name.split_once(':').filter(|(_, key)| !key.is_empty()) {
        match kind {
            "build-arg" => flags.build_arg.push(format!("{key}={value}")),
            "label" => flags.label.push(format!("{key}={value}")),
            "context" if value.starts_with("local:") || value.starts_with("input:") => {
                return Err("inputs of a session have no name here: give the directory with `--build-context`".into());
            }
            "context" => flags.build_context.push(format!("{key}={value}")),
            "attest" if value.is_empty() => flags.other.attest.push(format!("type={key}")),
            "attest" => flags.other.attest.push(format!("type={key},{value}")),
            _ => return Err(unknown()),
        }
        return Ok(());
    }
    match name {
        "target" => set(&mut flags.target, value.to_owned(), "--target"),
        "filename" => {
            let path = Path::new(&flags.context).join(value).display().to_string();
            set(&mut flags.file, path, "--file")
        }
        "platform" => {
            flags.platform.extend(list(value));
            Ok(())
        }
        "no-cache" if value.is_empty() => set(&mut flags.no_cache, true, "--no-cache"),
        "no-cache" => {
            flags.no_cache_filter.extend(list(value));
            Ok(())
        }
        "add-hosts" => {
            flags.add_host.extend(list(value));
            Ok(())
        }
        "ulimit" => {
            flags.ulimit.extend(list(value));
            Ok(())
        }
        "shm-size" => set(&mut flags.shm_size, flags::byte_size(value)?, "--shm-size"),
        "cgroup-parent" => set(&mut flags.cgroup_parent, value.to_owned(), "--cgroup-parent"),
        "force-network-mode" => {
            let mode = if value == "sandbox" { "default" } else { value };
            set(&mut flags.network, build::network(mode)?, "--network")
        }
        "image-resolve-mode" => match value {
            "" | "default" | "local" | "preferlocal" => Ok(()),
            "pull" => set(&mut flags.pull, true, "--pull"),
            _ => Err("the mode is one of default, pull, local".into()),
        },
        "hostname" => argument(flags, "BUILDKIT_SANDBOX_HOSTNAME", value),
        "multi-platform" => argument(flags, "BUILDKIT_MULTI_PLATFORM", value),
        // Which frontend is asked for; the build says what it takes instead, or refuses.
        "source" | "cmdline" => argument(flags, "BUILDKIT_SYNTAX", value),
        "cache-from" => {
            flags.other.cache_from.extend(list(value));
            Ok(())
        }
        "requestid" => {
            let method = value.strip_prefix("frontend.").unwrap_or(value);
            let method = method.strip_prefix("subrequests.").unwrap_or(method).to_owned();
            set(&mut flags.other.call, method, "--call")
        }
        _ => Err(unknown()),
    }
}

fn unknown() -> String {
    "no such attribute is known; known are build-arg:NAME, label:NAME, context:NAME, attest:TYPE, target, filename, platform, \
     no-cache, add-hosts, ulimit, shm-size, cgroup-parent, force-network-mode, image-resolve-mode, hostname, multi-platform, \
     source, cmdline, cache-from and requestid"
        .into()
}

/// The parts of a list, which BuildKit writes with commas.
fn list(value: &str) -> impl Iterator<Item = String> {
    value.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned)
}

/// Gives a flag its value, unless it has another one.
fn set<T: PartialEq>(flag: &mut Option<T>, value: T, name: &str) -> Result<(), String> {
    match flag {
        Some(given) if *given != value => Err(format!("`{name}` says something else")),
        _ => {
            *flag = Some(value);
            Ok(())
        }
    }
}

/// Gives a build argument that is a setting its value, unless `--build-arg` gives it another one.
fn argument(flags: &mut Flags, name: &str, value: &str) -> Result<(), String> {
    let wanted = format!("{name}={value}");
    let given = |text: &&String| text.split_once('=').is_some_and(|(known, _)| known == name);
    match flags.build_arg.iter().find(given) {
        Some(text) if *text != wanted => Err(format!("`--build-arg {name}` says something else")),
        _ => {
            flags.build_arg.push(wanted);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(texts: &[&str], change: impl FnOnce(&mut Flags)) -> (Flags, Vec<(String, String)>) {
        let mut flags = Flags { context: "ctx".into(), ..Flags::default() };
        change(&mut flags);
        flags.other.frontend_opt = texts.iter().map(|text| (*text).to_owned()).collect();
        let refused = apply(&mut flags);
        (flags, refused)
    }

    #[test]
    fn every_attribute_becomes_its_flag() {
        let (flags, refused) = applied(
            &[
                "build-arg:A=b=c",
                "label:org.x=1",
                "target=out",
                "platform=linux/amd64,linux/arm64",
                "filename=sub/x.Dockerfile",
                "context:base=docker-image://a",
                "no-cache=one,two",
                "add-hosts=a=1.2.3.4,b=::1",
                "ulimit=nofile=10:20,nproc=5",
                "shm-size=1024",
                "cgroup-parent=/x",
                "force-network-mode=none",
                "image-resolve-mode=pull",
                "hostname=box",
                "source=docker/dockerfile:1",
                "attest:provenance=mode=max",
                "attest:sbom=",
                "requestid=frontend.outline",
            ],
            |_| {},
        );
        assert_eq!(refused, []);
        let args = ["A=b=c", "BUILDKIT_SANDBOX_HOSTNAME=box", "BUILDKIT_SYNTAX=docker/dockerfile:1"];
        assert_eq!(flags.build_arg, args);
        assert_eq!((flags.label, flags.target.as_deref()), (vec!["org.x=1".to_owned()], Some("out")));
        assert_eq!(flags.platform, ["linux/amd64", "linux/arm64"]);
        assert_eq!(flags.file.as_deref(), Some("ctx/sub/x.Dockerfile"));
        assert_eq!(flags.build_context, ["base=docker-image://a"]);
        assert_eq!(flags.no_cache_filter, ["one", "two"]);
        assert_eq!(flags.add_host, ["a=1.2.3.4", "b=::1"]);
        assert_eq!(flags.ulimit, ["nofile=10:20", "nproc=5"]);
        assert_eq!((flags.shm_size, flags.cgroup_parent.as_deref()), (Some(1024), Some("/x")));
        assert_eq!(flags.network, Some(build_engine_engine::NetworkMode::None));
        assert_eq!(flags.pull, Some(true));
        assert_eq!(flags.other.attest, ["type=provenance,mode=max", "type=sbom"]);
        assert_eq!(flags.other.call.as_deref(), Some("outline"));
        let (flags, _) = applied(&["no-cache=", "multi-platform=true"], |_| {});
        assert_eq!(
            (flags.no_cache, &flags.build_arg[..]),
            (Some(true), &["BUILDKIT_MULTI_PLATFORM=true".to_owned()][..])
        );
    }

    #[test]
    fn what_is_unknown_or_says_something_else_is_refused_by_name() {
        for text in [
            "nonsense=1",
            "context:a=local:b",
            "build-arg:=x",
            "force-network-mode=bridge",
            "shm-size=x",
            "vcs:source=y",
        ] {
            let (_, refused) = applied(&[text], |_| {});
            assert_eq!(refused.len(), 1, "{text}");
            assert_eq!(refused[0].0, text);
        }
        let (_, refused) = applied(&["target=a"], |flags| flags.target = Some("b".into()));
        assert!(refused[0].1.contains("--target"), "{refused:?}");
        let (_, refused) = applied(&["target=a"], |flags| flags.target = Some("a".into()));
        assert_eq!(refused, []);
        let (_, refused) =
            applied(&["hostname=a"], |flags| flags.build_arg = vec!["BUILDKIT_SANDBOX_HOSTNAME=b".into()]);
        assert_eq!(refused.len(), 1);
    }
}
