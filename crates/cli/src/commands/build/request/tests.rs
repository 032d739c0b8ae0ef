use std::ffi::OsString;

use clap::Parser;
use expect_test::{Expect, expect};

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

/// A context with a Dockerfile, a directory `sub`, and what else tests name.
fn with_context<T>(test: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("Dockerfile"), "FROM scratch\n").expect("a file");
    std::fs::write(dir.path().join("args"), "# comment\nA=from file\n\n B=b \nFROM_ENV\n").expect("a file");
    std::fs::create_dir(dir.path().join("sub")).expect("a directory");
    test(dir.path())
}

/// Plans a build of such a context; `@/` in a flag stands for its path.
fn try_plan(args: &[&str]) -> Result<Plan, (u8, String)> {
    with_context(|dir| {
        let dir = dir.to_str().expect("UTF-8");
        let mut line = vec!["build".to_owned()];
        line.extend(args.iter().map(|arg| arg.replace("@/", &format!("{dir}/"))));
        if !args.contains(&"--") {
            line.push(dir.to_owned());
        }
        line.retain(|arg| arg != "--");
        let line = Line::try_parse_from(line).map_err(|error| (2, error.to_string()))?;
        let env = |name: &str| (name == "FROM_ENV").then(|| OsString::from("env value"));
        plan(line.flags, &env).map_err(|failure| (failure.code, format!("{}\n", failure.error).replace(dir, "@")))
    })
}

fn accepted(args: &[&str]) -> Plan {
    try_plan(args).unwrap_or_else(|(_, message)| panic!("{args:?} is refused: {message}"))
}

/// F1-082, F1-083: classic spellings are those of `--resource`, which has the last word.
#[test]
fn f1_083_classic_limits_and_the_way_to_the_host() {
    let plan = accepted(&["-m", "1g", "--memory-swap=-1", "-c", "7", "--cpuset-cpus=0,2", "--cpu-quota", "5"]);
    let expected = ResourceLimits {
        memory_bytes: 1 << 30,
        memory_swap_bytes: -1,
        cpu_shares: 7,
        cpu_quota: 5,
        cpuset_cpus: "0,2".into(),
        ..ResourceLimits::default()
    };
    assert_eq!(plan.request.resources, expected);
    let plan = accepted(&["--memory=1g", "--resource=memory=2g,cpuset-mems=0", "--cpu-period=9"]);
    let resources = plan.request.resources;
    assert_eq!((resources.memory_bytes, resources.cpu_period, &*resources.cpuset_mems), (2 << 30, 9, "0"));
    for args in [["--cpu-shares", "many"], ["--memory", "-5"], ["--cpuset-mems", "x"], ["--memory-swap", "1g"]] {
        assert_eq!(try_plan(&args).map(|_| ()).map_err(|(code, _)| code), Err(2), "{args:?}");
    }
    let plan = accepted(&["--network=host", "--add-host", "h:host-gateway"]);
    assert_eq!(plan.request.extra_hosts, [("h".to_owned(), "127.0.0.1".to_owned())]);
}

#[test]
fn every_flag_that_is_not_supported_is_refused_by_its_name() {
    for (args, flag) in [
        ("--cache-from type=local,src=x", "--cache-from"),
        ("--cache-to type=inline", "--cache-to"),
        ("--attest type=sbom", "--attest"),
        ("--provenance", "--provenance"),
        ("--provenance=mode=max", "--provenance"),
        ("--sbom=true", "--sbom"),
        ("--sbom=generator=x", "--sbom"),
        ("--builder remote", "--builder"),
        ("--backend buildkit", "--backend"),
        ("--on-failure shell", "--on-failure"),
        ("--squash", "--squash"),
        ("--security-opt x", "--security-opt"),
        ("--add-host a:host-gateway", "--add-host"),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let (code, message) = try_plan(&args).expect_err("it is refused");
        assert_eq!(code, 2, "{args:?}");
        assert!(message.starts_with(&format!("`{flag}")) && message.contains("not supported"), "{args:?}: {message}");
    }
}

#[test]
fn values_that_ask_for_nothing_are_accepted() {
    accepted(&[
        "--pull=false",
        "--push=false",
        "--load=0",
        "--attest=type=provenance,disabled=true",
        "--provenance=false",
        "--sbom=false",
        "--sbom=disabled=true",
        "--backend=embedded",
        "--check=false",
        "--call=build",
        "--locked=false",
        "--rm",
        "--force-rm",
        "--compress",
        "--isolation=default",
        "--squash=false",
        "--builder=",
    ]);
}

#[test]
fn every_value_that_cannot_be_understood_is_invalid_input() {
    for args in [
        "--platform linux/amd64/v1/x",
        "-t Upper/Case",
        "-t name@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "--label =x",
        "--annotation novalue",
        "--build-arg =x",
        "--build-arg-file @/missing",
        "--build-context nosource",
        "--build-context a=",
        "--build-context a=@/missing",
        "--build-context a=@/Dockerfile",
        "--add-host nothing",
        "--add-host a:b",
        "--ulimit nofile",
        "--ulimit nofile=x",
        "--ulimit nofile=2:1",
        "--ulimit what=1",
        "--shm-size lots",
        "--resource memory",
        "--resource memory=x",
        "--resource fun=1",
        "--resource cpuset-cpus=3-1",
        "--no-cache --no-cache-filter a",
        "--network bridge",
        "--call what",
        "--call check,format=xml",
        "--call check,fun=1",
        "--check --call outline",
        "--timeout never",
        "--timeout 0",
        "--userns maybe",
        "--progress fancy",
        "--quiet --progress=plain",
        "--quiet -o -",
        "-o - -o type=oci,dest=-",
        "-o type=what",
        "-o type=oci",
        "-o type=oci,dest=-,tar=false",
        "--build-arg SOURCE_DATE_EPOCH=-1",
        "--build-context a=s3://bucket/x",
        "-- s3://bucket/x",
        "-f @/missing",
        "--unknown",
        "-- @/missing",
        "-- @/Dockerfile",
        "-- @/sub",
        "--",
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let (code, message) = try_plan(&args).expect_err(&format!("{args:?} is refused"));
        assert_eq!(code, 2, "{args:?}: {message}");
    }
}

/// F1-011, F1-013, as buildx decides.
#[test]
fn contexts_may_be_addresses() {
    use DockerfileSource::{Context, Given, Url};
    for (args, remote, dockerfile, lends) in [
        (&["--", "https://h/a/b.git#main:sub"][..], "https://h/a/b.git#main:sub", Context("Dockerfile".into()), false),
        (&["--", "git@github.com:a/b"], "git@github.com:a/b", Context("Dockerfile".into()), true),
        (&["--", "ssh://git@h/a"], "ssh://git@h/a", Context("Dockerfile".into()), true),
        (&["--", "github.com/a/b"], "github.com/a/b", Context("Dockerfile".into()), false),
        (&["-f", "sub/D", "--", "https://h/c.tar"], "https://h/c.tar", Context("sub/D".into()), false),
        (&["-f", "https://h/D", "--", "git://h/a"], "git://h/a", Url("https://h/D".into()), false),
        (&["-f", "@/Dockerfile", "--", "git://h/a"], "git://h/a", Given, false),
    ] {
        let request = accepted(args).request;
        assert_eq!((request.remote_context.as_deref(), request.context), (Some(remote), None), "{args:?}");
        assert_eq!((request.dockerfile_source, request.session.lend_agent), (dockerfile, lends), "{args:?}");
    }
    let request = accepted(&["--build-context=a=git@h:b", "-f", "https://h/D"]).request;
    assert_eq!((request.dockerfile_source, request.session.lend_agent), (Url("https://h/D".into()), true));
    assert!(request.context.is_some());
}

fn check_request(args: &[&str], field: impl Fn(&BuildRequest) -> String, expected: &Expect) {
    expected.assert_eq(&field(&accepted(args).request));
}

#[test]
fn build_args_come_from_file_flag_and_environment_in_this_order() {
    check_request(
        &["--build-arg-file=@/args", "--build-arg", "A=x=y", "--build-arg", "UNSET", "--build-arg=EMPTY="],
        |request| format!("{:?}", request.build_args),
        &expect![[r#"{"A": "x=y", "B": "b", "EMPTY": "", "FROM_ENV": "env value"}"#]],
    );
}

#[test]
fn names_and_platforms_are_normalised_and_counted_once() {
    check_request(
        &[
            "-t",
            "a",
            "-t",
            "a:latest",
            "--tag=localhost:5000/b:1",
            "--platform",
            "x86_64,linux/arm64/v8",
            "--platform=amd64",
        ],
        |request| {
            let names =
                request.tags.iter().map(ToString::to_string).chain(request.platforms.iter().map(ToString::to_string));
            names.collect::<Vec<_>>().join(" ")
        },
        &expect!["docker.io/library/a:latest localhost:5000/b:1 linux/amd64 linux/arm64"],
    );
}

#[test]
fn what_run_gets_is_parsed() {
    check_request(
        &[
            "--network=none",
            "--add-host=a:10.0.0.1",
            "--add-host=b=[::1]",
            "--add-host",
            "c:::2",
            "--ulimit",
            "nofile=1024:-1",
            "--shm-size=128m",
            "--cgroup-parent=/x",
            "--resource",
            "memory=512m,cpu-quota=50000,cpuset-cpus=0,2-3,cpu-shares=7",
            "--label=a=b=c",
            "--label=d",
        ],
        |request| {
            format!(
                "{:?}\n{:?}\n{:?}\n{} {}\n{:?}\n{:?}",
                request.network,
                request.extra_hosts,
                request.ulimits,
                request.shm_size_bytes,
                request.cgroup_parent,
                request.resources,
                request.labels
            )
        },
        &expect![[r#"
            None
            [("a", "10.0.0.1"), ("b", "::1"), ("c", "::2")]
            [Limit { name: "nofile", soft: 1024, hard: -1 }]
            134217728 /x
            ResourceLimits { memory_bytes: 536870912, memory_swap_bytes: 0, cpu_shares: 7, cpu_period: 0, cpu_quota: 50000, cpuset_cpus: "0,2-3", cpuset_mems: "" }
            {"a": "b=c", "d": ""}"#]],
    );
}

#[test]
fn outputs_and_contexts_are_absolute() {
    let plan = accepted(&["-o", "out", "--build-context", "sub=@/sub", "-o", "type=oci,dest=x.tar"]);
    assert!(matches!(&plan.request.outputs[0], Output::Local { dest, .. } if dest.is_absolute()));
    assert!(matches!(&plan.request.outputs[1], Output::Oci { dest: OutputDest::Path(dest), .. } if dest.is_absolute()));
    assert!(matches!(&plan.request.named_contexts["sub"], ContextSource::Local { path } if path.is_absolute()));
    assert!(plan.request.context.is_some_and(|context| context.is_absolute()));
}

/// F2-020 to F2-022.
#[test]
fn push_and_load_are_short_for_outputs() {
    let shown = |args: &[&str]| -> Vec<String> {
        let plan = accepted(args);
        let shown = plan.request.outputs.iter().map(|output| match output {
            Output::Image { store, push, .. } => format!("image store={store} push={push}"),
            Output::Load { target: LoadTarget::Sockets(sockets), .. } => format!("load {}", sockets.len()),
            Output::Load { target: LoadTarget::Containerd(to), .. } => format!("load containerd {}", to.namespace),
            Output::Oci { .. } => "oci".to_owned(),
            other => format!("{other:?}"),
        });
        shown.collect()
    };
    for (args, expected) in [
        (&["--push", "-t", "a"][..], &["image store=true push=true"][..]),
        (&["--push", "-t", "a", "-o", "type=image"], &["image store=true push=true"]),
        (&["--push", "-o", "type=registry,name=a"], &["image store=false push=true"]),
        (&["--push", "-t", "a", "-o", "type=oci,dest=x"], &["oci", "image store=true push=true"]),
        (&["--load"], &["load 2"]),
        (&["--load", "-o", "type=docker"], &["load 2"]),
        (&["-o", "type=image,push=true,store=false,name=a"], &["image store=false push=true"]),
        (&["--push=false", "--load=false"], &[]),
    ] {
        assert_eq!(shown(args), expected, "{args:?}");
    }
}

/// D-17.
#[test]
fn a_lock_file_of_the_context_is_taken_and_locked_needs_one() {
    with_context(|dir| {
        let plan_of = |args: &[&str]| {
            let all = ["build"].into_iter().chain(args.iter().copied()).map(std::ffi::OsStr::new);
            let line = Line::parse_from(all.chain([dir.as_os_str()]));
            plan(line.flags, &|_: &str| None)
        };
        let error = plan_of(&["--locked"]).expect_err("there is none").error.to_string();
        assert!(error.contains("build-engine.lock"), "{error}");
        let images = lock_file::Images::from([("docker.io/library/a:1".to_owned(), digest())]);
        lock_file::write(dir, &images).expect("written");
        let request = plan_of(&["--locked", "--pull"]).expect("a plan").request;
        assert_eq!((request.lock, request.locked, request.pull), (images, true, true));
        std::fs::write(dir.join(lock_file::NAME), "{}").expect("written");
        assert!(plan_of(&[]).is_err(), "a lock is never ignored");
    });
}

fn digest() -> build_engine_oci::Digest {
    build_engine_oci::Digest::sha256(b"x")
}

#[test]
fn whoever_wants_a_digest_gets_an_image() {
    for args in [["-q"], ["--iidfile=x"], ["--metadata-file=x"]] {
        assert!(matches!(accepted(&args).request.outputs[..], [Output::Image { .. }]), "{args:?}");
    }
    assert!(accepted(&["-q", "-t", "a"]).request.outputs.is_empty());
    assert!(accepted(&[]).request.outputs.is_empty());
}

#[test]
fn the_last_of_several_single_values_wins() {
    let plan = accepted(&["--target=a", "--target", "b", "--no-cache", "--no-cache=false"]);
    assert_eq!((plan.request.target.as_deref(), plan.request.no_cache), (Some("b"), NoCache::Off));
    let plan = accepted(&["--no-cache-filter", "A,b", "--timeout=1m30s", "--userns=host"]);
    assert_eq!(plan.request.no_cache, NoCache::Stages(vec!["a".into(), "b".into()]));
    assert_eq!((plan.timeout, plan.user_namespace), (Some(Duration::from_secs(90)), UserNamespace::Host));
}

#[test]
fn the_epoch_is_a_build_argument_too() {
    let given = accepted(&["--build-arg=SOURCE_DATE_EPOCH=1700000000"]);
    assert_eq!(given.request.source_date_epoch, Some(1_700_000_000));
    with_context(|dir| {
        let line = Line::parse_from(["build".as_ref(), dir.as_os_str()]);
        let env = |name: &str| (name == "SOURCE_DATE_EPOCH").then(|| OsString::from("12"));
        let plan = plan(line.flags, &env).expect("a plan");
        assert_eq!(plan.request.source_date_epoch, Some(12));
        assert_eq!(plan.request.build_args["SOURCE_DATE_EPOCH"], "12");
    });
}

#[test]
fn the_dockerfile_is_looked_for_in_the_context_and_f_starts_here() {
    let plan = accepted(&[]);
    assert_eq!(
        (plan.request.dockerfile_name.as_str(), plan.request.dockerfile.as_str()),
        ("Dockerfile", "FROM scratch\n")
    );
    with_context(|dir| {
        std::fs::rename(dir.join("Dockerfile"), dir.join("dockerfile")).expect("renamed");
        let line = Line::parse_from(["build".as_ref(), dir.as_os_str()]);
        assert_eq!(plan_of(line).expect("a plan").request.dockerfile_name, "dockerfile");
        std::fs::rename(dir.join("dockerfile"), dir.join("Containerfile")).expect("renamed");
        let line = Line::parse_from(["build".as_ref(), dir.as_os_str()]);
        let failure = plan_of(line).expect_err("it is refused");
        assert!(failure.error.reports[0].hint.as_deref().is_some_and(|hint| hint.contains("Containerfile")));
        let line = Line::parse_from(["build".as_ref(), "-f".as_ref(), "Containerfile".as_ref(), dir.as_os_str()]);
        let failure = plan_of(line).expect_err("it is refused");
        assert!(failure.error.reports[0].hint.as_deref().is_some_and(|hint| hint.contains("current directory")));
    });
}

fn plan_of(line: Line) -> Result<Plan, Failure> {
    plan(line.flags, &|_| None)
}

/// Security plan D13.
#[test]
fn d13_a_dockerfile_outside_of_the_context_must_be_named() {
    with_context(|dir| {
        let elsewhere = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(elsewhere.path(), "FROM scratch\n").expect("written");
        std::fs::remove_file(dir.join("Dockerfile")).expect("removed");
        std::os::unix::fs::symlink(elsewhere.path(), dir.join("Dockerfile")).expect("a link");
        let failure = plan_of(Line::parse_from(["build".as_ref(), dir.as_os_str()])).expect_err("it is refused");
        assert!(failure.error.to_string().contains("leads out of the context"), "{}", failure.error);
        let named = dir.join("Dockerfile");
        plan_of(Line::parse_from(["build".as_ref(), "-f".as_ref(), named.as_os_str(), dir.as_os_str()]))
            .expect("it is taken");
        std::fs::rename(dir.join("args"), dir.join("real")).expect("renamed");
        std::fs::remove_file(&named).expect("removed");
        std::os::unix::fs::symlink("real", &named).expect("a link");
        assert!(plan_of(Line::parse_from(["build".as_ref(), dir.as_os_str()])).is_ok(), "a link within the context");
        std::fs::remove_file(&named).expect("removed");
        std::fs::create_dir(&named).expect("a directory");
        assert!(plan_of(Line::parse_from(["build".as_ref(), dir.as_os_str()])).is_err());
    });
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let (_, message) = try_plan(&["--squash", "-t", "A", "--ulimit=x"]).expect_err("it is refused");
    assert_eq!(message.lines().count(), 3, "{message}");
}

#[test]
fn sizes_are_read_in_powers_of_1024() {
    for (text, expected) in [
        ("64", Ok(64)),
        ("1k", Ok(1024)),
        ("128MB", Ok(128 << 20)),
        ("1.5GiB", Ok(3 << 29)),
        ("2 g", Ok(2 << 30)),
        ("", Err(())),
        ("m", Err(())),
        ("-1", Err(())),
        ("1x", Err(())),
        ("99999999999p", Err(())),
    ] {
        assert_eq!(flags::byte_size(text).map_err(|_| ()), expected, "{text:?}");
    }
}

#[test]
fn ids_differ_and_are_25_characters_long() {
    let (one, two) = (new_id(), new_id());
    assert_eq!((one.len(), one == two), (25, false));
}
