//! The same input gives the same bytes, whoever builds; owners, capabilities and devices survive.

use build_engine_testkit::engine::Who;
use build_engine_testkit::fixtures::{TarWriter, write_layout};
use build_engine_testkit::image::Kind;
use build_engine_testkit::report;

use crate::Bench;

const DETERMINISTIC: &[(&str, &str)] = &[
    (
        "Dockerfile",
        "FROM base AS made\n\
         RUN mkdir -p /made/sub && echo 1 > /made/a && ln /made/a /made/hard && ln -s a /made/soft && \\\n\
             chown -R app:staff /made/sub && cp /made/a /made/setuid && chmod 4755 /made/setuid && mkfifo /made/pipe\n\
         FROM made\n\
         RUN rm /made/hard && echo 2 > /made/sub/b && rm -r /var/www\n\
         COPY . /copied/\n\
         COPY --from=made --chown=1234 /made /from-stage\n\
         WORKDIR /home/app/new\n",
    ),
    ("file", "content\n"),
    ("folder/deep/file", "more\n"),
];

#[test]
fn root_and_user_make_the_same_layers() {
    let args = ["--build-arg=SOURCE_DATE_EPOCH=1600000000"];
    let images: Vec<_> = [Who::Root, Who::User]
        .into_iter()
        .filter_map(Bench::new)
        .map(|bench| {
            let out = bench.engine.work().join("out.tar");
            let output = format!("--output=type=oci,dest={},rewrite-timestamp=true", out.display());
            let run = bench.build("context", DETERMINISTIC, &[args[0], &output]);
            assert_eq!(run.code, Some(0), "{}", run.stderr);
            build_engine_testkit::image::image_of_archive(&out).unwrap()
        })
        .collect();
    let [root, user] = &images[..] else { return };
    let different = report::differences(&report::report(root, true), &report::report(user, true));
    assert!(different.is_empty(), "{}", different.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    let digests = |image: &build_engine_testkit::image::Image| -> Vec<String> {
        image.layers.iter().map(|layer| layer.digest.clone()).collect()
    };
    assert_eq!(digests(root), digests(user));
    assert_eq!(root.digest, user.digest);
}

/// Capability version 2 with `cap_net_raw` permitted and effective.
const NET_RAW: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn round_trip(who: Who) {
    let Some(bench) = Bench::new(who) else { return };
    let mut layer = TarWriter::default();
    layer.directory("s", 0o755, (0, 0)).unwrap();
    layer
        .file_with_xattrs("s/capable", 0o755, b"capable", &[("security.capability", NET_RAW), ("user.note", b"lost")])
        .unwrap();
    layer.device("s/null", 0o666, 1, 3).unwrap();
    layer.file("s/owned", 0o4750, (1000, 50), b"owned").unwrap();
    layer.directory("s/dir", 0o2775, (33, 33)).unwrap();
    layer.directory("s/kept", 0o2775, (33, 33)).unwrap();
    layer.file("s/kept/file", 0o6755, (1000, 50), b"kept").unwrap();
    layer.device("s/kept/tty", 0o620, 5, 0).unwrap();
    layer.symlink("s/link", "owned").unwrap();
    layer.hard_link("s/hard", "s/owned").unwrap();
    let special = bench.engine.work().join("special");
    write_layout(&special, &serde_json::json!({}), &[layer.finish().unwrap()]).unwrap();
    bench.engine.adopt(&special).unwrap();
    let context = format!("--build-context=special=oci-layout://{}:latest", special.display());
    let image = bench.image(
        "context",
        &[(
            "Dockerfile",
            "FROM special\n\
             COPY --from=base /bin/busybox /bin/busybox\n\
             RUN [\"/bin/busybox\", \"sh\", \"-c\", \"cd /s; for f in capable null owned dir link; do /bin/busybox mv $f moved-$f; done; \
             cd kept; echo > new; /bin/busybox chmod 700 file; /bin/busybox chmod 600 tty\"]\n",
        )],
        &[&context],
    );
    let get = |path: &str| image.tree.get(path).unwrap_or_else(|| panic!("the image has no `{path}`"));
    let capable = get("/s/moved-capable");
    assert_eq!(capable.xattrs.get("security.capability").map(Vec::as_slice), Some(NET_RAW), "{capable:?}");
    let names: Vec<&String> = capable.xattrs.keys().collect();
    assert_eq!(names.len(), 1, "neither the engine's own attributes nor those of users may leave it: {names:?}");
    assert_eq!((&get("/s/moved-null").kind, get("/s/moved-null").mode), (&Kind::Device('c', 1, 3), 0o666));
    let owned = get("/s/moved-owned");
    assert_eq!((owned.mode, owned.uid, owned.gid), (0o4750, 1000, 50));
    let dir = get("/s/moved-dir");
    // Overlays do not rename directories, so that `mv` makes another one, as the owner that it sees.
    let (mode, owner) = if who == Who::OneUid { (0o775, 0) } else { (0o2775, 33) };
    assert_eq!((&dir.kind, dir.mode, dir.uid, dir.gid), (&Kind::Directory, mode, owner, owner));
    let kept = get("/s/kept");
    assert_eq!((&kept.kind, kept.mode, kept.uid, kept.gid), (&Kind::Directory, 0o2775, 33, 33));
    let file = get("/s/kept/file");
    assert_eq!((file.mode, file.uid, file.gid), (0o700, 1000, 50), "a mode that a step sets counts");
    assert_eq!((&get("/s/kept/tty").kind, get("/s/kept/tty").mode), (&Kind::Device('c', 5, 0), 0o600));
    assert_eq!(get("/s/moved-link").kind, Kind::Symlink("owned".to_owned()));
    assert!(image.tree.get("/s/owned").is_none(), "what was moved away is gone");
}

#[test]
fn owners_capabilities_and_devices_survive_as_root() {
    round_trip(Who::Root);
}

#[test]
fn owners_capabilities_and_devices_survive_as_a_user() {
    round_trip(Who::User);
}

#[test]
fn owners_capabilities_and_devices_survive_with_one_uid() {
    round_trip(Who::OneUid);
}

#[test]
fn a_build_with_one_uid_says_so_and_works() {
    let Some(bench) = Bench::new(Who::OneUid) else { return };
    let run = bench.build(
        "context",
        &[("Dockerfile", "FROM base\nRUN chown app:staff /tmp && id -u > /id\n")],
        &["-t", "one"],
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("subuid"), "the note names what is missing:\n{}", run.stderr);
}
