//! A real base: Debian from the machine's own mirrors, with `apt-get install` in a RUN, started by other runtimes.

use build_engine_testkit::engine::{Engine, Who};
use build_engine_testkit::peers::{Peers, output};
use build_engine_testkit::{available, fixtures};

const DOCKERFILE: &str = "FROM debian\n\
    RUN apt-get update && apt-get install -y --no-install-recommends hello && rm -rf /var/lib/apt/lists/*\n\
    CMD [\"/usr/bin/hello\"]\n";

fn install_and_start(who: Who) {
    let Some(engine) = available(Engine::new(who)) else { return };
    let Some(base) = available(fixtures::debian().and_then(|base| engine.base(&base))) else { return };
    let context = engine.context("context", &[("Dockerfile", DOCKERFILE)]).unwrap();
    let archive = engine.work().join("hello.tar");
    let run = engine
        .run([
            "build".to_owned(),
            "--progress=plain".to_owned(),
            format!("--build-context=debian=oci-layout://{}:latest", base.display()),
            format!("--output=type=docker,dest={}", archive.display()),
            "--tag=hello:e2e".to_owned(),
            context.to_string_lossy().into_owned(),
        ])
        .unwrap();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let Some(peers) = available(Peers::start()) else { return };
    output(peers.docker().args(["load", "--input"]).arg(&archive)).unwrap();
    let said = output(peers.docker().args(["run", "--rm", "--network=none", "hello:e2e"])).unwrap();
    assert!(said.contains("Hello, world!"), "{said}");
    output(peers.containers_tool("podman").args(["load", "--input"]).arg(&archive)).unwrap();
    let mut podman = peers.containers_tool("podman");
    let said = output(podman.args(["run", "--rm", "--network=none", "hello:e2e"])).unwrap();
    assert!(said.contains("Hello, world!"), "{said}");
}

#[test]
fn debian_with_a_package_installed_by_root_starts_in_docker_and_podman() {
    install_and_start(Who::Root);
}

#[test]
fn debian_with_a_package_installed_by_a_user_starts_in_docker_and_podman() {
    install_and_start(Who::User);
}
