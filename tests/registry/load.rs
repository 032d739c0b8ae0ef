//! `--load`: into Docker and Podman through their sockets, how much travels, and what is said where neither answers.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use build_engine_testkit::engine::Who;
use build_engine_testkit::peers::{Peers, output};
use build_engine_testkit::registry::FakeRegistry;
use build_engine_testkit::{Unavailable, available, fixtures};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Bench;
use crate::images::{Form, Image};

/// A daemon of a test's own; asked to end when dropped.
struct Service {
    process: Child,
    socket: PathBuf,
    _dir: Option<TempDir>,
}

impl Service {
    /// Starts `command`, which listens at `socket`.
    fn start(mut command: Command, socket: PathBuf, dir: Option<TempDir>) -> Result<Service> {
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut service = Service { process, socket, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(&service.socket).is_err() {
            if let Some(status) = service.process.try_wait()? {
                return Err(Unavailable(format!("{command:?} ended with {status}")).into());
            }
            assert!(Instant::now() < deadline, "{command:?} does not start");
            thread::yield_now();
        }
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A dockerd that is killed leaves its containerd behind.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// A socket before the one of a daemon, which counts the bytes that the daemon gets.
struct Wire {
    socket: PathBuf,
    bytes: Arc<AtomicU64>,
}

impl Wire {
    fn new(socket: PathBuf, daemon: &Path) -> Wire {
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        let bytes = Arc::new(AtomicU64::new(0));
        let (daemon, count) = (daemon.to_path_buf(), Arc::clone(&bytes));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&daemon).unwrap());
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let count = Arc::clone(&count);
                thread::spawn(move || pump(from, to, &count));
                thread::spawn(move || pump(server, client, &AtomicU64::new(0)));
            }
        });
        Wire { socket, bytes }
    }

    /// What has passed since the last call.
    fn passed(&self) -> u64 {
        self.bytes.swap(0, Ordering::SeqCst)
    }
}

fn pump(mut from: UnixStream, mut to: UnixStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        count.fetch_add(length as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A dockerd with a graph driver, which the peers' is not.
fn docker_with_graph_driver(peers: &Peers) -> Result<Service> {
    let programs = Path::new(peers.docker().get_program()).parent().unwrap().parent().unwrap().to_path_buf();
    let dir = tempfile::Builder::new().prefix("be-graph-").tempdir_in("/tmp")?;
    let below = |name: &str| dir.path().join(name);
    fs::write(below("daemon.json"), r#"{"features": {"containerd-snapshotter": false}}"#)?;
    let socket = below("docker.sock");
    let mut dockerd = Command::new(programs.join("sbin/dockerd"));
    let path = format!("{0}/bin:{0}/sbin:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
    dockerd.env("PATH", path).args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--config-file"]);
    dockerd.arg(below("daemon.json")).arg("--data-root").arg(below("data")).arg("--exec-root").arg(below("exec"));
    dockerd.arg("--pidfile").arg(below("pid")).arg("-H").arg(format!("unix://{}", socket.display()));
    Service::start(dockerd, socket, Some(dir))
}

/// The name and the files of an image that no daemon has seen: ten layers that do not get smaller.
struct Fresh {
    seed: u64,
    name: String,
}

const LAYERS: usize = 10;
const LAYER_BYTES: u64 = 100_000;
/// For the documents, and what a daemon is asked.
const TALK_BYTES: u64 = 40_000;

impl Fresh {
    fn new() -> Fresh {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let seed = now.as_nanos() as u64 ^ u64::from(std::process::id()) << 40;
        Fresh { seed, name: format!("example.invalid/load-{seed:x}") }
    }

    /// Writes the context, where the layers in `changed` differ from those of other calls.
    fn write(&self, bench: &Bench, changed: &[usize], round: u64) -> PathBuf {
        let dir = bench.engine.context("app", &[]).unwrap();
        let mut dockerfile = "FROM base\n".to_owned();
        for layer in 0..LAYERS {
            let round = if changed.contains(&layer) { round } else { 0 };
            let mut state = self.seed ^ (layer as u64) << 8 ^ round << 16 | 1;
            let bytes: Vec<u8> = (0..LAYER_BYTES)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 32) as u8
                })
                .collect();
            // A file that is written again has another time, and so has its layer.
            let path = dir.join(format!("f{layer}"));
            if fs::read(&path).ok().as_ref() != Some(&bytes) {
                fs::write(path, bytes).unwrap();
            }
            dockerfile += &format!("COPY f{layer} /\n");
        }
        dockerfile += "CMD [\"sh\", \"-c\", \"cat /f* | wc -c\"]\n";
        fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
        bench.engine.adopt(&dir).unwrap();
        dir
    }
}

/// Loads an image again and again into the daemon at `socket`, which `client` talks to, and counts. `above` is how many
/// layers travel when the fifth has changed.
fn what_travels(bench: &mut Bench, socket: &Path, client: &dyn Fn() -> Command, above: usize) {
    let base = bench.engine.base(&fixtures::busybox().unwrap()).unwrap();
    let base = format!("base=oci-layout://{}:latest", base.display());
    let wire = Wire::new(bench.engine.work().join("wire.sock"), socket);
    bench.environment.insert("DOCKER_HOST".into(), format!("unix://{}", wire.socket.display()));
    let image = Fresh::new();
    let [one, two] = ["one", "two"].map(|tag| format!("{}:{tag}", image.name));
    let build = |changed: &[usize], round: u64, args: &[&str]| -> (u64, String) {
        let context = image.write(bench, changed, round);
        let mut all = vec!["build", "--network=none", "--progress=plain", "--build-context", &base];
        all.extend(args);
        all.push(context.to_str().unwrap());
        let run = bench.run(all);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        (wire.passed(), run.stderr)
    };
    let load = |changed: &[usize], round: u64, tag: &str| build(changed, round, &["--load", "-t", tag]);
    let inspect = |tag: &str| -> Value {
        let text = output(client().args(["image", "inspect", tag])).unwrap();
        serde_json::from_str::<Vec<Value>>(&text).unwrap().remove(0)
    };
    let remove = |tags: &[&str]| output(client().args(["image", "rm", "--force"]).args(tags)).unwrap();
    let all_bytes = LAYERS as u64 * LAYER_BYTES;

    let (bytes, said) = load(&[], 0, &one);
    assert!(bytes > all_bytes, "{bytes} bytes for all layers");
    assert!(said.contains("layers sent"), "{said}");
    let first = inspect(&one);

    let (bytes, said) = load(&[], 0, &one);
    assert!(bytes < TALK_BYTES && said.contains("the daemon has this image"), "{bytes} bytes for nothing new: {said}");

    let (bytes, said) = load(&[], 0, &two);
    assert!(bytes < TALK_BYTES && said.contains("the daemon has this image"), "{bytes} bytes for a name: {said}");
    assert_eq!(inspect(&two)["Id"], first["Id"]);

    let (bytes, said) = load(&[LAYERS - 1], 1, &one);
    assert!(said.contains(" 1 of 11 layers sent"), "{said}");
    assert!((LAYER_BYTES..LAYER_BYTES + TALK_BYTES).contains(&bytes), "{bytes} bytes for the last layer");
    assert_ne!(inspect(&one)["Id"], first["Id"]);
    assert_eq!(inspect(&two)["Id"], first["Id"], "the other name stays where it was");

    let (bytes, said) = load(&[4, LAYERS - 1], 2, &one);
    // Both layers that changed, and those above for a store of chains.
    assert!(said.contains(&format!(" {above} of 11 layers sent")), "{said}");
    let expected = above as u64 * LAYER_BYTES;
    assert!((expected..expected + TALK_BYTES).contains(&bytes), "{bytes} bytes for {above} layers");
    let size = (all_bytes).to_string();
    let run = || output(client().args(["run", "--rm", "--network=none", &one])).unwrap().trim().to_owned();
    assert_eq!(run(), size);

    // The name goes back to an image that is there, without a byte of it.
    let (bytes, _) = load(&[], 0, &one);
    assert!(bytes < TALK_BYTES, "{bytes} bytes for an older image");
    assert_eq!(inspect(&one)["Id"], first["Id"]);

    // Gone is gone: what was loaded once is not taken for granted.
    load(&[4, LAYERS - 1], 2, &one);
    let loaded = inspect(&one);
    remove(&[&one, &two]);
    load(&[4, LAYERS - 1], 2, &one);
    assert_eq!(run(), size);
    assert_eq!(inspect(&one)["Id"], loaded["Id"]);

    // And `docker load` of the whole archive gives the same.
    remove(&[&one]);
    let archive = bench.engine.work().join("whole.tar");
    build(&[4, LAYERS - 1], 2, &["-o", &format!("type=docker,dest={}", archive.display()), "-t", &one]);
    output(client().args(["load", "--input"]).arg(&archive)).unwrap();
    let whole = inspect(&one);
    for part in ["Id", "RootFS", "Config", "Architecture", "Os", "RepoTags", "RepoDigests"] {
        assert_eq!(loaded[part], whole[part], "{part}");
    }
    remove(&[&one]);
}

/// D-03, with Docker and containerd's image store.
#[test]
fn d03_docker_gets_the_blobs_that_it_lacks() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let Some(peers) = available(Peers::start()) else { return };
    let socket = output(peers.docker().args(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"])).unwrap();
    let socket = PathBuf::from(socket.trim().trim_start_matches("unix://"));
    what_travels(&mut bench, &socket, &|| peers.docker(), 2);
}

/// D-03, with Docker and a graph driver.
#[test]
fn d03_docker_with_a_graph_driver_gets_the_layers_from_the_first_that_it_lacks() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let Some(peers) = available(Peers::start()) else { return };
    let Some(service) = available(docker_with_graph_driver(&peers)) else { return };
    let client = || {
        let mut docker = peers.docker();
        docker.env("DOCKER_HOST", format!("unix://{}", service.socket.display()));
        docker
    };
    what_travels(&mut bench, &service.socket, &client, LAYERS - 4);
}

/// D-03, with containerd itself: the one that belongs to a dockerd, in a namespace of its own.
#[test]
fn d03_containerd_gets_the_blobs_that_it_lacks() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let Some(peers) = available(Peers::start()) else { return };
    let Some(service) = available(docker_with_graph_driver(&peers)) else { return };
    let containerd = service.socket.parent().unwrap().join("exec/containerd/containerd.sock");
    let ctr = |args: &[&str]| {
        let mut ctr = peers.command(Path::new(peers.docker().get_program()).with_file_name("ctr").to_str().unwrap());
        output(ctr.arg("--address").arg(&containerd).args(["--namespace", "load-test"]).args(args)).unwrap()
    };
    let base = bench.engine.base(&fixtures::busybox().unwrap()).unwrap();
    let base = format!("base=oci-layout://{}:latest", base.display());
    let wire = Wire::new(bench.engine.work().join("wire.sock"), &containerd);
    bench.environment.insert("CONTAINERD_ADDRESS".into(), wire.socket.display().to_string());
    bench.environment.insert("CONTAINERD_NAMESPACE".into(), "load-test".into());
    let image = Fresh::new();
    let [one, two] = ["one", "two"].map(|tag| format!("{}:{tag}", image.name));
    let load = |changed: &[usize], tag: &str| -> (u64, String) {
        let context = image.write(&bench, changed, 1);
        let context = context.to_str().unwrap();
        let run = bench.run(["build", "--progress=plain", "--build-context", &base, "--load", "-t", tag, context]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        (wire.passed(), run.stderr)
    };
    let size = (LAYERS as u64 * LAYER_BYTES).to_string();
    let runs = std::cell::Cell::new(0);
    let run = |tag: &str| {
        runs.set(runs.get() + 1);
        ctr(&["run", "--rm", tag, &format!("run-{}", runs.get())]).trim().to_owned()
    };

    let (bytes, said) = load(&[], &one);
    assert!(bytes > LAYERS as u64 * LAYER_BYTES && said.contains(" 11 of 11 layers sent"), "{bytes}: {said}");
    assert_eq!(run(&one), size);
    let (bytes, said) = load(&[], &one);
    assert!(bytes < TALK_BYTES && said.contains("the daemon has this image"), "{bytes}: {said}");
    let (bytes, said) = load(&[], &two);
    assert!(bytes < TALK_BYTES && said.contains("the daemon has this image; named it"), "{bytes}: {said}");
    let (bytes, said) = load(&[4], &one);
    assert!((LAYER_BYTES..LAYER_BYTES + TALK_BYTES).contains(&bytes), "{bytes} bytes for a layer: {said}");
    assert!(said.contains(" 1 of 11 layers sent"), "{said}");
    assert_eq!(run(&one), size);

    // Names, layers and snapshots hold together: what the garbage collection takes is what nothing stands for.
    ctr(&["images", "rm", "--sync", &two]);
    let checked = ctr(&["images", "check"]);
    let line = checked.lines().find(|line| line.starts_with(&one)).unwrap();
    assert!(line.contains("complete (12/12)") && line.trim_end().ends_with("true"), "{checked}");
    assert_eq!(run(&one), size);
    let content = ctr(&["content", "ls", "--quiet"]);
    assert_eq!(content.lines().count(), 11 + 2, "{content}");
    assert_eq!(ctr(&["leases", "ls", "--quiet"]), "");
    ctr(&["images", "rm", "--sync", &one]);
    assert_eq!(ctr(&["content", "ls", "--quiet"]), "");
    assert_eq!(ctr(&["snapshots", "ls"]).lines().count(), 1, "the heading alone");

    bench.environment.insert("CONTAINERD_ADDRESS".into(), "/nonexistent/containerd.sock".into());
    let context = image.write(&bench, &[], 1);
    let args = ["build", "--build-context", &base, "--load", "-t", &one, context.to_str().unwrap()];
    bench.fails(args, &[3], &["/nonexistent/containerd.sock", "CONTAINERD_ADDRESS"]);
}

/// D-03, with Podman.
#[test]
fn d03_podman_gets_the_layers_that_it_lacks() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let Some(peers) = available(Peers::start()) else { return };
    let service = podman(&bench, peers.containers_tool("podman"));
    what_travels(&mut bench, &service.socket.clone(), &|| peers.containers_tool("podman"), 2);
}

/// D-03, with the Podman of an ordinary user, who is also the one who builds.
#[test]
fn d03_podman_of_a_user_gets_the_layers_that_it_lacks() {
    let Some(mut bench) = Bench::new(Who::User) else { return };
    let Some(_peers) = available(Peers::start()) else { return };
    let Some(client) = rootless_podman(&bench) else { return };
    let service = podman(&bench, client.podman());
    what_travels(&mut bench, &service.socket.clone(), &|| client.podman(), 2);
}

/// A daemon that answers as told: `server` is what it calls itself, `status` its `DriverStatus`, and the first `refusals`
/// archives are not to its liking. Returns the sizes of the archives that it got.
fn scripted_daemon(socket: &Path, server: &'static str, status: Value, refusals: usize) -> Arc<Mutex<Vec<usize>>> {
    let listener = UnixListener::bind(socket).unwrap();
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
    let archives = Arc::new(Mutex::new(Vec::new()));
    let got = Arc::clone(&archives);
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let (mut request, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
            loop {
                let length = client.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..length]);
                let head = memchr::memmem::find(&request, b"\r\n\r\n");
                let is_chunked = memchr::memmem::find(&request, b"chunked").is_some();
                let has_all = if is_chunked { request.ends_with(b"\r\n0\r\n\r\n") } else { head.is_some() };
                if length == 0 || has_all {
                    break;
                }
            }
            let line = String::from_utf8_lossy(&request[..request.len().min(40)]).into_owned();
            let (code, body) = if line.starts_with("GET /_ping") {
                (200, "OK".to_owned())
            } else if line.starts_with("GET /info") {
                (200, json!({ "DriverStatus": status }).to_string())
            } else if line.starts_with("POST /images/load") {
                let mut got = got.lock().unwrap();
                got.push(request.len());
                if got.len() > refusals {
                    (200, String::new())
                } else {
                    (500, r#"{"message":"not like this"}"#.to_owned())
                }
            } else {
                (404, "{}".to_owned())
            };
            let head = format!("HTTP/1.1 {code} X\r\nServer: {server}\r\nContent-Length: {}\r\n", body.len());
            let _ = client.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes());
        }
    });
    archives
}

/// D-03: where nothing is known of what a daemon has, or it wants no archive with holes, it gets all of it.
#[test]
fn d03_a_daemon_that_takes_no_archive_with_holes_gets_the_whole_one() {
    let of_containerd = json!([["driver-type", "io.containerd.snapshotter.v1"]]);
    for (name, server, status, refusals, expected) in [
        ("graph driver", "Docker/1", json!([["Backing Filesystem", "extfs"]]), 1, &[false, true][..]),
        ("never", "Docker/1", json!([["Backing Filesystem", "extfs"]]), 9, &[false, true]),
        ("blobs that nobody lists", "Docker/1", of_containerd, 0, &[true]),
        ("podman without images", "Libpod/1", Value::Null, 0, &[true]),
        ("another one", "Other/1", Value::Null, 0, &[true]),
        ("docker that says little", "Docker/1", Value::Null, 0, &[true]),
    ] {
        let Some(mut bench) = Bench::new(Who::User) else { return };
        let socket = bench.engine.work().join("docker.sock");
        let archives = scripted_daemon(&socket, server, status, refusals);
        bench.environment.insert("DOCKER_HOST".into(), format!("unix://{}", socket.display()));
        let content = "0123456789abcdef".repeat(20_000);
        let files = [("Dockerfile", "FROM scratch\nCOPY big /\n"), ("big", &content)];
        let run = bench.build("app", &files, &["-o", "type=docker,compression=uncompressed", "-t", "app"]);
        let is_refused = refusals >= expected.len();
        assert_eq!(run.code, Some(if is_refused { 3 } else { 0 }), "{name}: {}", run.stderr);
        assert_eq!(run.stderr.contains("not like this"), is_refused, "{name}: {}", run.stderr);
        let are_whole: Vec<bool> = archives.lock().unwrap().iter().map(|size| *size > content.len()).collect();
        assert_eq!(are_whole, expected, "{name}");
    }
}

/// D-03: what neither the build nor the daemon needs is not fetched.
#[test]
fn d03_a_layer_of_a_base_that_the_daemon_has_is_not_fetched() {
    let Some(mut bench) = Bench::new(Who::Root) else { return };
    let Some(peers) = available(Peers::start()) else { return };
    let socket = output(peers.docker().args(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"])).unwrap();
    bench.environment.insert("DOCKER_HOST".into(), socket.trim().to_owned());
    let name = Fresh::new().name;
    let registry = FakeRegistry::start();
    let Some(image) = Image::runnable(&name, Form::Docker) else { return };
    image.put(&registry, "base", "v1");
    let reads = |registry: &FakeRegistry| registry.requests_of("GET", "/v2/base/blobs/").len();
    let mut build = |label: &str| {
        bench.empty_store(label);
        let dockerfile = format!("FROM {}\nLABEL a={label}\n", registry.reference("base", "v1"));
        let run = bench.build("app", &[("Dockerfile", &dockerfile)], &["--load", "-t", &name]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert_eq!(output(peers.docker().args(["run", "--rm", "--network=none", &name])).unwrap().trim(), name);
        run.stderr
    };
    build("one");
    // Its config, and the layer that no other image has.
    assert!(reads(&registry) >= 2);
    registry.forget_requests();
    let said = build("two");
    assert!(said.contains(" 0 of 2 layers sent"), "{said}");
    assert_eq!(reads(&registry), 1, "the config alone");
    output(peers.docker().args(["image", "rm", "--force", &name])).unwrap();
}

/// Podman as the user of the engine; `None`, after saying why, where that does not work.
fn rootless_podman(bench: &Bench) -> Option<Rootless> {
    let rootless = Rootless { dir: bench.engine.work().join("podman") };
    fs::create_dir(&rootless.dir).unwrap();
    // What raises limits, and what wants systemd, does not work everywhere.
    let limits = "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n";
    let conf = format!("{limits}[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n");
    fs::write(rootless.dir.join("containers.conf"), conf).unwrap();
    bench.engine.adopt(&rootless.dir).unwrap();
    let works = output(rootless.podman().arg("info"));
    available(works.map_err(|error| Unavailable(format!("podman does not work for a user: {error:#}")).into()))?;
    Some(rootless)
}

/// Podman of the user `be-test`.
struct Rootless {
    dir: PathBuf,
}

impl Rootless {
    fn podman(&self) -> Command {
        let mut podman = Command::new("runuser");
        podman.args(["-u", "be-test", "--", "podman", "--storage-driver=vfs", "--runtime=runc"]);
        podman.arg("--root").arg(self.dir.join("root")).arg("--runroot").arg(self.dir.join("run"));
        podman.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", &self.dir);
        podman.env("XDG_RUNTIME_DIR", &self.dir).env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        podman.current_dir(&self.dir).stdin(Stdio::null());
        podman
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        // The process that keeps the user namespace.
        if let Ok(pid) = fs::read_to_string(self.dir.join("libpod/tmp/pause.pid")) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
    }
}

/// Podman's API service.
fn podman(bench: &Bench, mut podman: Command) -> Service {
    let socket = bench.engine.work().join("podman.sock");
    podman.args(["system", "service", "--time=0", &format!("unix://{}", socket.display())]);
    Service::start(podman, socket, None).unwrap()
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
    let service = podman(&bench, peers.containers_tool("podman"));
    let address = format!("unix://{}", service.socket.display());
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
