//! `--load`: into Docker and Podman through their sockets, and what is said where neither answers.

use std::process::{Child, Command, Stdio};

use build_engine_testkit::engine::Who;
use build_engine_testkit::peers::{Peers, output};
use build_engine_testkit::{available, fixtures};

use crate::Bench;

/// Podman's API service; ended when dropped.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const DOCKERFILE: &str = "FROM base\nRUN echo loaded > /word\nCMD [\"cat\", \"/word\"]\n";

/// F2-022.
#[test]
fn an_image_is_loaded_into_docker() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let Some(peers) = available(Peers::start()) else { return };
    let socket = output(peers.docker().args(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"])).unwrap();
    bench.environment.insert("DOCKER_HOST".into(), socket.trim().to_owned());
    load(&bench, "loaded-into-docker");
    let mut run = peers.docker();
    run.args(["run", "--rm", "--network=none", "loaded-into-docker"]);
    assert_eq!(output(&mut run).unwrap(), "loaded\n");
    output(peers.docker().args(["image", "rm", "--force", "loaded-into-docker"])).unwrap();
}

/// F2-022.
#[test]
fn an_image_is_loaded_into_podman() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let Some(peers) = available(Peers::start()) else { return };
    let socket = bench.engine.work().join("podman.sock");
    let address = format!("unix://{}", socket.display());
    let mut service = peers.containers_tool("podman");
    service.args(["system", "service", "--time=0", &address]).stdout(Stdio::null()).stderr(Stdio::null());
    let _service = Service(service.spawn().unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(std::time::Instant::now() < deadline, "podman's service does not start");
        std::thread::yield_now();
    }
    bench.environment.insert("CONTAINER_HOST".into(), address);
    load(&bench, "loaded-into-podman");
    let listed = output(peers.containers_tool("podman").args(["images", "--quiet", "loaded-into-podman"])).unwrap();
    assert_eq!(listed.lines().count(), 1, "{listed}");
    output(peers.containers_tool("podman").args(["rmi", "--force", "loaded-into-podman"])).unwrap();
}

#[test]
fn without_a_daemon_the_sockets_that_were_tried_are_named() {
    let Some(mut bench) = Bench::new(Who::User) else { return };
    let context = bench.engine.context("app", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]).unwrap();
    let context = context.to_str().unwrap();
    for (host, code) in [("unix:///nonexistent/docker.sock", 3), ("tcp://192.0.2.1:2375", 2)] {
        bench.environment.insert("DOCKER_HOST".into(), host.to_owned());
        let named = host.trim_start_matches("unix://");
        bench.fails(["build", "--load", "-t", "x", context], &[code], &[named, "DOCKER_HOST"]);
    }
}

/// Builds an image, loads it as `name`, and writes it to the store and to an archive in the same build (F2-027).
fn load(bench: &Bench, name: &str) {
    let base = bench.engine.base(&fixtures::busybox().unwrap()).unwrap();
    let base = format!("base=oci-layout://{}:latest", base.display());
    let context = bench.engine.context("app", &[("Dockerfile", DOCKERFILE)]).unwrap();
    let archive = bench.engine.work().join("app.tar");
    let archive = format!("type=oci,dest={}", archive.display());
    let context = context.to_str().unwrap();
    bench.ok(["build", "--load", "-o", "type=image", "-o", &archive, "--build-context", &base, "-t", name, context]);
    assert_eq!(bench.ok(["run", name]), "loaded\n");
    let listed = output(Command::new("tar").arg("-tf").arg(bench.engine.work().join("app.tar"))).unwrap();
    assert!(listed.contains("index.json"), "{listed}");
}
