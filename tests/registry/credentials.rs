//! R13, and where credentials come from; R06 and R12: what is refused because it cannot be done yet.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use build_engine_testkit::engine::Who;
use build_engine_testkit::peers::output;
use build_engine_testkit::registry::{FakeRegistry, TokenOptions};
use serde_json::{Value, json};

use crate::images::Image;
use crate::{Bench, EVERYBODY, PASSWORD, USER, basic, within};

/// A registry that asks for the password, with `app:v1`.
fn registry(marker: &str) -> FakeRegistry {
    let registry = FakeRegistry::start();
    registry.require_basic(USER, PASSWORD);
    Image::tiny(marker).put(&registry, "app", "v1");
    registry
}

impl Bench {
    /// Installs `docker-credential-NAME`, a shell script, and puts its folder in front of `PATH`.
    fn helper(&mut self, name: &str, script: &str) {
        let dir = self.engine.work().join("bin");
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("docker-credential-{name}"));
        let part = dir.join("part");
        fs::write(&part, format!("#!/bin/sh\n{script}\n")).unwrap();
        // By a process of its own: see `Engine::new`.
        output(std::process::Command::new("install").args(["-m", "755"]).arg(&part).arg(&path)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        self.engine.adopt(&dir).unwrap();
        self.environment.insert("PATH".to_owned(), format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display()));
    }
}

#[test]
fn r13_names_of_helpers_that_are_paths_or_commands_are_refused() {
    for who in EVERYBODY {
        let Some(mut bench) = Bench::new(who) else { return };
        let canary = bench.engine.work().join("canary");
        bench.helper("evil", &format!("touch {}", canary.display()));
        // What `docker-credential-../x` and the like could mean.
        let script = bench.engine.work().join("bin/docker-credential-evil");
        for path in ["bin/x", "x"] {
            fs::copy(&script, bench.engine.work().join(path)).unwrap();
        }
        fs::create_dir(bench.engine.work().join("bin/docker-credential-")).unwrap();
        let registry = registry(&format!("helper names {who:?}"));
        for name in ["../x", "/bin/evil", "..", "evil;touch canary", "evil\n", "a b", "$(touch canary)", "x/../evil"] {
            for key in ["credsStore", "credHelpers"] {
                let value = if key == "credsStore" { json!(name) } else { json!({ (registry.host()): name }) };
                bench.docker_config(&json!({ (key): value }));
                let run = bench.fails(["pull", &registry.reference("app", "v1")], &[2, 3], &["helper"]);
                assert!(!canary.exists(), "{name}: {}", run.stderr);
            }
        }
    }
}

#[test]
fn r13_a_helper_that_works_is_used_and_told_the_host() {
    for who in EVERYBODY {
        let Some(mut bench) = Bench::new(who) else { return };
        let registry = registry(&format!("helper works {who:?}"));
        let asked = bench.engine.work().join("home-asked");
        bench.write(&asked, "");
        let answer = json!({ "ServerURL": registry.host(), "Username": USER, "Secret": PASSWORD });
        bench.helper("fine", &format!("echo \"$1 $(cat)\" > {}\necho '{answer}'", asked.display()));
        for config in [json!({ "credsStore": "fine" }), json!({ "credHelpers": { (registry.host()): "fine" } })] {
            bench.docker_config(&config);
            bench.ok(["pull", &registry.reference("app", "v1")]);
            assert_eq!(fs::read_to_string(&asked).unwrap().trim(), format!("get {}", registry.host()));
        }
    }
}

#[test]
fn r13_helpers_that_hang_or_talk_without_end_are_stopped() {
    let noise = "yes xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    let cases: [(&str, &str); 7] = [
        ("hangs", "exec sleep 8641"),
        ("hangs-with-child", "sleep 8642 & wait"),
        ("floods", noise),
        ("floods-stderr", "yes xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&2"),
        ("fails", "echo 'the helper is not in the mood' >&2; exit 1"),
        ("nonsense", "echo nonsense"),
        ("silent", "exit 0"),
    ];
    for who in EVERYBODY {
        let Some(mut bench) = Bench::new(who) else { return };
        let registry = registry(&format!("helper hangs {who:?}"));
        for (name, script) in cases {
            bench.helper(name, script);
            bench.docker_config(&json!({ "credHelpers": { (registry.host()): name } }));
            let reference = registry.reference("app", "v1");
            let run = within(Duration::from_secs(25), || {
                bench.fails(["pull", &reference], &[2, 3, 5], &[&format!("docker-credential-{name}")])
            });
            assert!(run.stderr.len() < 64 << 10, "{name}: a message of {} bytes", run.stderr.len());
        }
        // The processes are gone with the run that started them.
        let left = output(std::process::Command::new("ps").args(["-eo", "pid,args"])).unwrap();
        let left: Vec<&str> = left.lines().filter(|line| line.contains("sleep 864")).collect();
        assert!(left.is_empty(), "{left:?}");
        // Another host is not concerned.
        let open = FakeRegistry::start();
        Image::tiny(&format!("open {who:?}")).put(&open, "app", "v1");
        bench.ok(["pull", &open.reference("app", "v1")]);
    }
}

#[test]
fn r13_a_missing_helper_is_named() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let registry = registry("helper missing");
    bench.docker_config(&json!({ "credHelpers": { (registry.host()): "no-such" } }));
    bench.fails(["pull", &registry.reference("app", "v1")], &[2, 3], &["docker-credential-no-such"]);
}

/// Who says "no credentials" in the words of Docker's helpers is believed.
#[test]
fn r13_a_helper_without_credentials_for_the_host_means_anonymous() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let open = FakeRegistry::start();
    Image::tiny("helper knows nothing").put(&open, "app", "v1");
    bench.helper("empty", "echo 'credentials not found in native keychain'; exit 1");
    bench.docker_config(&json!({ "credsStore": "empty" }));
    bench.ok(["pull", &open.reference("app", "v1")]);
}

/// A file of credentials in one of the usual places.
struct Source {
    name: &'static str,
    /// Writes `content` where it belongs, and points to it.
    place: fn(&mut Bench, &str),
}

const SOURCES: &[Source] = &[
    Source {
        name: "DOCKER_CONFIG",
        place: |bench, content| bench.write(&bench.docker_config.join("config.json"), content),
    },
    Source {
        name: "HOME",
        place: |bench, content| {
            let dir = bench.engine.work().parent().unwrap().join("home/.docker");
            fs::create_dir_all(&dir).unwrap();
            bench.engine.adopt(&dir).unwrap();
            bench.write(&dir.join("config.json"), content);
            bench.docker_config = dir;
        },
    },
    Source {
        name: "REGISTRY_AUTH_FILE",
        place: |bench, content| {
            let path = bench.engine.work().join("auth.json");
            bench.write(&path, content);
            bench.environment.insert("REGISTRY_AUTH_FILE".to_owned(), path.display().to_string());
        },
    },
    Source {
        name: "XDG_RUNTIME_DIR",
        place: |bench, content| {
            let dir = bench.engine.work().join("run");
            fs::create_dir_all(dir.join("containers")).unwrap();
            bench.engine.adopt(&dir).unwrap();
            bench.write(&dir.join("containers/auth.json"), content);
            bench.environment.insert("XDG_RUNTIME_DIR".to_owned(), dir.display().to_string());
        },
    },
];

#[test]
fn credentials_are_found_where_docker_and_podman_keep_them() {
    for who in EVERYBODY {
        for source in SOURCES {
            let Some(mut bench) = Bench::new(who) else { return };
            let registry = registry(&format!("{} {who:?}", source.name));
            let content = json!({ "auths": { (registry.host()): { "auth": basic(USER, PASSWORD) } } }).to_string();
            (source.place)(&mut bench, &content);
            let run = bench.run(["pull", &registry.reference("app", "v1")]);
            assert_eq!(run.code, Some(0), "{} as {who:?}: {}", source.name, run.stderr);
        }
    }
}

#[test]
fn keys_of_credentials_may_have_a_scheme_or_a_path() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let registry = registry("keys");
    let host = registry.host();
    let auth = json!({ "auth": basic(USER, PASSWORD) });
    let wrong = json!({ "auth": basic(USER, "wrong") });
    let named = json!({ "username": USER, "password": PASSWORD });
    let works = [
        json!({ (format!("http://{host}")): auth }),
        json!({ (format!("https://{host}/v2/")): auth }),
        json!({ (host): named }),
    ];
    for auths in works {
        bench.docker_config(&json!({ "auths": auths }));
        let run = bench.run(["pull", &registry.reference("app", "v1")]);
        assert_eq!(run.code, Some(0), "{auths}: {}", run.stderr);
    }
    let does_not = [
        json!({}),
        json!({ (host): wrong }),
        json!({ (host): {} }),
        json!({ (format!("{host}.example")): auth }),
        json!({ (format!("x{host}")): auth }),
        json!({ "127.0.0.1": auth }),
    ];
    for auths in does_not {
        bench.docker_config(&json!({ "auths": auths }));
        let run = bench.run(["pull", &registry.reference("app", "v1")]);
        assert_eq!(run.code, Some(3), "{auths}: {}", run.stderr);
        assert!(run.stderr.contains(host), "{}", run.stderr);
    }
}

/// containers-auth.json(5): a key may name a repository, and the longest one that fits is used.
#[test]
fn keys_of_podmans_credentials_may_name_a_repository() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let registry = registry("repository keys");
    let host = registry.host();
    let path = bench.engine.work().join("auth.json");
    bench.environment.insert("REGISTRY_AUTH_FILE".to_owned(), path.display().to_string());
    let (auth, wrong) = (json!({ "auth": basic(USER, PASSWORD) }), json!({ "auth": basic(USER, "wrong") }));
    let cases = [
        (json!({ (format!("{host}/app")): auth, (host): wrong }), 0),
        (json!({ (format!("{host}/app")): wrong, (host): auth }), 3),
        (json!({ (format!("{host}/app/deeper")): wrong, (host): auth }), 0),
        (json!({ (format!("{host}/other")): auth }), 3),
    ];
    let mut problems = Vec::new();
    for (auths, code) in cases {
        bench.write(&path, &json!({ "auths": auths }).to_string());
        let run = bench.run(["pull", &registry.reference("app", "v1")]);
        if run.code != Some(code) {
            problems.push(format!("{auths}: {code} expected, {:?}: {}", run.code, run.stderr));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

#[test]
fn a_file_of_credentials_that_is_none_is_named() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let registry = registry("broken file");
    let broken = [
        "nonsense".to_owned(),
        json!({ "auths": [] }).to_string(),
        json!({ "auths": { (registry.host()): { "auth": "!!!" } } }).to_string(),
        json!({ "auths": { (registry.host()): { "auth": "bm8tY29sb24=" } } }).to_string(),
        "[".repeat(100_000),
    ];
    for content in broken {
        bench.write(&bench.docker_config.join("config.json"), &content);
        bench.fails(["pull", &registry.reference("app", "v1")], &[2, 3], &["config.json"]);
    }
}

#[test]
fn tokens_are_fetched_in_every_way_that_servers_offer() {
    let options: [(&str, TokenOptions, Value); 6] = [
        ("plain", TokenOptions::default(), json!({ "auth": basic(USER, PASSWORD) })),
        (
            "no POST",
            TokenOptions { refuses_post: true, ..TokenOptions::default() },
            json!({ "auth": basic(USER, PASSWORD) }),
        ),
        (
            "no GET",
            TokenOptions { refuses_get: true, ..TokenOptions::default() },
            json!({ "auth": basic(USER, PASSWORD) }),
        ),
        (
            "access_token",
            TokenOptions { names_access_token_only: true, expires_in_seconds: Some(60), ..TokenOptions::default() },
            json!({ "auth": basic(USER, PASSWORD) }),
        ),
        (
            "identity token",
            TokenOptions { accepts_refresh_token: Some("an-identity-token".to_owned()), ..TokenOptions::default() },
            json!({ "auth": basic("<token>", ""), "identitytoken": "an-identity-token" }),
        ),
        ("anonymous", TokenOptions { allows_anonymous_pull: true, ..TokenOptions::default() }, json!({})),
    ];
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        for (name, options, auth) in &options {
            let registry = FakeRegistry::start();
            Image::tiny(&format!("{name} {who:?}")).put(&registry, "deep/er/app", "v1");
            registry.require_token(USER, PASSWORD, options.clone());
            bench.docker_config(&json!({ "auths": { (registry.host()): auth } }));
            let run = bench.run(["pull", &registry.reference("deep/er/app", "v1")]);
            assert_eq!(run.code, Some(0), "{name} as {who:?}: {}", run.stderr);
            // What is there already need not be pushed.
            let pushed =
                bench.run(["push", &registry.reference("deep/er/app", "v1"), &registry.reference("new", "v1")]);
            assert_eq!(pushed.code, Some(if *name == "anonymous" { 3 } else { 0 }), "{name}: {}", pushed.stderr);
        }
    }
}

#[test]
fn a_token_that_does_not_allow_pushing_is_said_to() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let registry = FakeRegistry::start();
    Image::tiny("pull only").put(&registry, "app", "v1");
    registry.require_token(USER, PASSWORD, TokenOptions { grants_pull_only: true, ..TokenOptions::default() });
    bench.log_in(registry.host());
    bench.ok(["pull", &registry.reference("app", "v1")]);
    bench.ok(["images", "tag", &registry.reference("app", "v1"), &registry.reference("other", "v1")]);
    bench.fails(["push", &registry.reference("other", "v1")], &[3], &[registry.host()]);
    // It was not tried again and again.
    assert!(registry.token_count() <= 12, "{} tokens", registry.token_count());
}

#[test]
fn a_wrong_password_is_reported_and_not_tried_again() {
    for door in ["basic", "token"] {
        let Some(bench) = Bench::new(Who::Root) else { return };
        let registry = registry("wrong password");
        if door == "token" {
            registry.require_token(USER, PASSWORD, TokenOptions::default());
        }
        bench.docker_config(&json!({ "auths": { (registry.host()): { "auth": basic(USER, "wrong") } } }));
        bench.fails(["pull", &registry.reference("app", "v1")], &[3], &[registry.host()]);
        // Accounts are locked after a few.
        let requests = registry.requests();
        let shown = requests.iter().filter(|request| {
            request.header("authorization").is_some_and(|text| text.starts_with("Basic")) || request.method == "POST"
        });
        assert!(shown.count() <= 2, "{requests:#?}");
    }
}

/// R06, R12: what a Dockerfile fetches gets no credential of a registry, and some of it is never asked for.
#[test]
fn r06_r12_remote_sources_get_no_credential_of_a_registry() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let registry = FakeRegistry::start();
        bench.docker_config(&json!({ "auths": { (registry.host()): { "auth": basic(USER, PASSWORD) } } }));
        for (source, code) in [
            (format!("{}/file", registry.origin()), 3),
            ("http://169.254.169.254/latest/meta-data/".to_owned(), 7),
            ("git@example.com:a/b.git".to_owned(), 7),
            ("https://example.com/a/b.git#--upload-pack=x".to_owned(), 2),
        ] {
            let dockerfile = format!("FROM scratch\nADD {source} /x\n");
            let run = bench.build("remote", &[("Dockerfile", &dockerfile)], &["-t", "remote"]);
            assert_eq!(run.code, Some(code), "{source}: {}", run.stderr);
            assert!(run.stderr.contains("Dockerfile:2"), "{source}: {}", run.stderr);
        }
        let requests = registry.requests_of("GET", "/file");
        assert!(!requests.is_empty() && requests.iter().all(|request| request.header("authorization").is_none()));
    }
}
