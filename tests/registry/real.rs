//! Debian's `docker-registry`, and the other clients that people have: what one pushes the others pull.

use std::path::{Path, PathBuf};
use std::process::Command;

use build_engine_testkit::available;
use build_engine_testkit::certs::{Authority, Flaw};
use build_engine_testkit::engine::Who;
use build_engine_testkit::fixtures::busybox;
use build_engine_testkit::peers::{Peers, output};
use build_engine_testkit::registry::{Access, REAL_PASSWORD, REAL_USER, RealRegistry};
use serde_json::{Value, json};

use crate::{Bench, EVERYBODY, basic};

const DOCKERFILE: &str = "FROM base AS made\nRUN echo made > /made\nFROM base\nCOPY --from=made /made /made\nCOPY file /file\n\
                          RUN rm /etc/os-release\nLABEL what=test\nCMD [\"cat\", \"/made\", \"/file\"]\n";

/// A registry with an engine that may use it.
struct Scene {
    bench: Bench,
    registry: RealRegistry,
    /// A folder with `ca.crt`, where the registry speaks TLS.
    certs: Option<PathBuf>,
    access: Access,
}

impl Scene {
    fn new(who: Who, access: Access, has_tls: bool) -> Option<Scene> {
        let bench = Bench::new(who)?;
        let authority = Authority::new("the testkit's authority").unwrap();
        let certificate = has_tls.then(|| authority.server(Flaw::None).unwrap());
        let registry = available(RealRegistry::start(access, certificate.as_ref()))?;
        let certs = has_tls.then(|| {
            let dir = bench.engine.work().join("certs");
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("ca.crt"), authority.pem()).unwrap();
            bench.engine.adopt(&dir).unwrap();
            dir
        });
        let ca: Vec<PathBuf> = certs.iter().map(|dir| dir.join("ca.crt")).collect();
        let auth_hosts: Vec<&str> = registry.token_host().into_iter().collect();
        let mut registries = json!({ (registry.host()): { "ca": ca, "auth-hosts": auth_hosts } });
        if let Some(host) = registry.token_host() {
            registries[host] = json!({ "ca": ca });
        }
        bench.configure(&registries, &json!({}));
        if access != Access::Open {
            let auth = json!({ "auth": basic(REAL_USER, REAL_PASSWORD) });
            bench.docker_config(&json!({ "auths": { (registry.host()): auth } }));
        }
        Some(Scene { bench, registry, certs, access })
    }

    /// Builds [`DOCKERFILE`], and pushes it as `name`.
    fn push(&self, name: &str) {
        let base = available(busybox()).unwrap();
        let base = self.bench.engine.base(&base).unwrap();
        let base = format!("--build-context=base=oci-layout://{}:latest", base.display());
        let files = [("Dockerfile", DOCKERFILE), ("file", "from the context\n")];
        let run = self.bench.build("context", &files, &[&base, "--push", "-t", name]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    }

    /// `skopeo` with what it needs for one side (`src-`, `dest-` or nothing).
    fn skopeo(&self, verb: &str, side: &str) -> Command {
        let home = self.bench.engine.work().join("skopeo");
        std::fs::create_dir_all(&home).unwrap();
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", verb]).env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
        command.env_remove("REGISTRY_AUTH_FILE").env_remove("DOCKER_CONFIG");
        match &self.certs {
            Some(dir) => command.arg(format!("--{side}cert-dir={}", dir.display())),
            None => command.arg(format!("--{side}tls-verify=false")),
        };
        if self.access != Access::Open {
            command.arg(format!("--{side}creds={REAL_USER}:{REAL_PASSWORD}"));
        }
        command
    }
}

const OUT: &str = "made\nfrom the context\n";

fn there_and_back(access: Access, has_tls: bool) {
    for who in EVERYBODY {
        let Some(mut scene) = Scene::new(who, access, has_tls) else { return };
        let name = scene.registry.reference("some/app", "v1");
        scene.push(&name);
        let seen = output(scene.skopeo("inspect", "").arg(format!("docker://{name}"))).unwrap();
        let seen: Value = serde_json::from_str(&seen).unwrap();
        assert_eq!(seen["Labels"]["what"], "test");
        // skopeo checks every digest on the way.
        let layout = scene.bench.engine.work().join("copied");
        let (from, to) = (format!("docker://{name}"), format!("oci:{}:v1", layout.display()));
        output(scene.skopeo("copy", "src-").args([&from, &to])).unwrap();
        build_engine_testkit::image::images_of_layout(&layout).unwrap();

        scene.bench.empty_store("second");
        scene.bench.ok(["pull", &name]);
        assert_eq!(scene.bench.ok(["run", "--network=none", &name]), OUT);
        scene.bench.verify_store();
        // Into a second repository and a second tag; by another client into a third.
        for other in [scene.registry.reference("other/app", "v1"), scene.registry.reference("some/app", "v2")] {
            scene.bench.ok(["images", "tag", &name, &other]);
            scene.bench.ok(["push", &other]);
        }
        let third = scene.registry.reference("by/skopeo", "v1");
        let mut copy = scene.skopeo("copy", "dest-");
        output(copy.arg(format!("oci:{}:v1", layout.display())).arg(format!("docker://{third}"))).unwrap();
        scene.bench.empty_store("third");
        assert_eq!(scene.bench.ok(["run", "--network=none", &third]), OUT);
        scene.bench.verify_store();

        if access != Access::Open {
            scene.bench.docker_config(&json!({}));
            scene.bench.empty_store("fourth");
            scene.bench.fails(["pull", &name], &[3], &[scene.registry.host()]);
            scene.bench.fails(["push", &third], &[2, 3], &[]);
        }
    }
}

#[test]
fn a_plain_registry_takes_and_gives() {
    there_and_back(Access::Open, false);
}

#[test]
fn a_plain_registry_with_basic_authentication_takes_and_gives() {
    there_and_back(Access::Basic, false);
}

#[test]
fn a_plain_registry_with_tokens_takes_and_gives() {
    there_and_back(Access::Token, false);
}

#[test]
fn a_registry_with_tls_and_basic_authentication_takes_and_gives() {
    there_and_back(Access::Basic, true);
}

#[test]
fn a_registry_with_tls_and_tokens_takes_and_gives() {
    there_and_back(Access::Token, true);
}

#[test]
fn blobs_are_mounted_and_not_sent_twice_in_a_real_registry() {
    let Some(scene) = Scene::new(Who::Root, Access::Token, true) else { return };
    let name = scene.registry.reference("some/app", "v1");
    scene.push(&name);
    let uploads =
        |log: &[String]| log.iter().filter(|line| line.contains("\"PUT /v2/") && line.contains("/uploads/")).count();
    let first = uploads(&scene.registry.log());
    assert!(first > 0, "{:#?}", scene.registry.log());
    scene.push(&name);
    scene.bench.ok(["push", &name]);
    assert_eq!(uploads(&scene.registry.log()), first);
    let other = scene.registry.reference("other/app", "v1");
    scene.bench.ok(["images", "tag", &name, &other]);
    scene.bench.ok(["push", &other]);
    assert_eq!(uploads(&scene.registry.log()), first, "the other repository mounts");
}

/// `docker` and `podman` pull and run what we pushed; we pull and run what they pushed.
fn peers_read_ours_and_we_theirs(who: Who) {
    let Some(mut scene) = Scene::new(who, Access::Open, false) else { return };
    let Some(peers) = available(Peers::start()) else { return };
    let repository = format!("{who:?}").to_lowercase();
    let name = scene.registry.reference(&repository, "v1");
    scene.push(&name);
    output(peers.docker().args(["pull", "--quiet", &name])).unwrap();
    assert_eq!(output(peers.docker().args(["run", "--rm", "--network=none", &name])).unwrap(), OUT);
    let podman = |args: &[&str]| output(peers.containers_tool("podman").args(args)).unwrap();
    podman(&["pull", "--quiet", "--tls-verify=false", &name]);
    assert_eq!(podman(&["run", "--rm", "--network=none", &name]), OUT);

    scene.bench.empty_store("second");
    let by_docker = scene.registry.reference(&repository, "docker");
    output(peers.docker().args(["tag", &name, &by_docker])).unwrap();
    output(peers.docker().args(["push", "--quiet", &by_docker])).unwrap();
    assert_eq!(scene.bench.ok(["run", "--network=none", &by_docker]), OUT);
    for format in ["oci", "v2s2"] {
        let by_podman = scene.registry.reference(&repository, &format!("podman-{format}"));
        podman(&["push", "--quiet", "--tls-verify=false", "--format", format, &name, &by_podman]);
        assert_eq!(scene.bench.ok(["run", "--network=none", &by_podman]), OUT);
    }
    for (format, compression) in [("v2s2", "gzip"), ("oci", "gzip"), ("oci", "zstd")] {
        // A registry of its own: skopeo reuses what it knows to be in one, whatever form is asked for.
        let Some(registry) = available(RealRegistry::start(Access::Open, None)) else { return };
        let by_skopeo = registry.reference("theirs", "v1");
        let dir = scene.bench.engine.work().join(format!("skopeo-{format}-{compression}"));
        let (plain, layout) = (format!("dir:{}/plain", dir.display()), format!("oci:{}/layout:v1", dir.display()));
        std::fs::create_dir(&dir).unwrap();
        let skopeo = |args: &[&str]| {
            output(peers.command("skopeo").args(["--insecure-policy", "copy"]).args(args)).unwrap();
        };
        skopeo(&["--src-tls-verify=false", "--dest-decompress", &format!("docker://{name}"), &plain]);
        let source = if format == "oci" {
            skopeo(&["--dest-compress", "--format=oci", "--dest-compress-format", compression, &plain, &layout]);
            &layout
        } else {
            &plain
        };
        skopeo(&["--dest-tls-verify=false", "--format", format, source, &format!("docker://{by_skopeo}")]);
        let mut inspect = peers.command("skopeo");
        inspect.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{by_skopeo}")]);
        let raw = output(&mut inspect).unwrap();
        assert!(raw.contains(compression), "{raw}");
        scene.bench.empty_store(&format!("skopeo-{format}-{compression}"));
        assert_eq!(scene.bench.ok(["run", "--network=none", &by_skopeo]), OUT);
        // What is built on an image in Docker's words is read by all.
        let made = registry.reference("made", "v1");
        let dockerfile = format!("FROM {by_skopeo}\nRUN echo more >> /made\nCMD [\"cat\", \"/made\"]\n");
        let run = scene.bench.build("on-theirs", &[("Dockerfile", &dockerfile)], &["--push", "-t", &made]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert_eq!(output(peers.docker().args(["run", "--rm", "--network=none", &made])).unwrap(), "made\nmore\n");
        podman(&["pull", "--quiet", "--tls-verify=false", &made]);
        assert_eq!(podman(&["run", "--rm", "--network=none", &made]), "made\nmore\n");
        output(peers.docker().args(["image", "rm", "--force", &made])).unwrap();
        podman(&["image", "rm", "--force", &made]);
    }
    scene.bench.verify_store();
    output(peers.docker().args(["image", "rm", "--force", &name, &by_docker])).unwrap();
    podman(&["image", "rm", "--force", &name]);
}

#[test]
fn docker_podman_and_skopeo_exchange_images_with_root() {
    peers_read_ours_and_we_theirs(Who::Root);
}

#[test]
fn docker_podman_and_skopeo_exchange_images_with_a_user() {
    peers_read_ours_and_we_theirs(Who::User);
}

/// The project's own example, whose stages make three images of one base.
#[test]
fn the_shop_is_pushed_pulled_and_run() {
    for access in [Access::Basic, Access::Token] {
        shop(access);
    }
}

fn shop(access: Access) {
    let Some(mut scene) = Scene::new(Who::Root, access, true) else { return };
    let Some(base) = available(build_engine_testkit::fixtures::debian()) else { return };
    let base = scene.bench.engine.base(&base).unwrap();
    let shop = build_engine_testkit::workspace().join("examples/shop");
    let context = scene.bench.engine.work().join("shop");
    output(Command::new("cp").arg("-r").arg(&shop).arg(&context)).unwrap();
    let base = format!("--build-context=debian=oci-layout://{}:latest", base.display());
    let names: Vec<String> = ["catalog", "orders", "report"]
        .map(|service| {
            let name = scene.registry.reference(&format!("shop/{service}"), "v1");
            let args = ["build", "--progress=plain", &base, "--target", service, "--push", "-t", &name];
            scene.bench.ok(args.into_iter().chain([path_text(&context).as_str()]));
            name
        })
        .to_vec();
    let here: Vec<String> = names.iter().map(|name| scene.bench.ok(["run", name])).collect();
    scene.bench.empty_store("second");
    for (name, expected) in names.iter().zip(here) {
        scene.bench.ok(["pull", name]);
        assert_eq!(scene.bench.ok(["run", name]), expected, "{name}");
    }
    scene.bench.verify_store();
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
