//! L06, L07: devices, pipes, set-user-id and capabilities.

use std::fs::File;
use std::path::PathBuf;

use build_engine_testkit::archive::{Member, archive};
use build_engine_testkit::engine::Who;
use build_engine_testkit::image::{Image, Kind, Tree, image_of_archive};

use crate::{Bench, Blob, Case, Seen, applied, has, owned, refused, run_within};

/// `cap_net_raw+ep`, as `struct vfs_cap_data` of revision 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        applied("L06: devices and pipes are kept as what they are", vec![archive(&nodes())], &expected()),
        applied(
            "L06: devices of the layer below keep their number through a hard link",
            vec![
                archive(&nodes()),
                archive([&Member::hard_link("h", "mem").mode(0o600).owner(0, 6), &Member::hard_link("p", "pipe")]),
            ],
            &[
                ("/h", Seen::Kind(Kind::Device('c', 1, 1))),
                ("/mem", Seen::Mode(0o600, 0, 6)),
                ("/p", Seen::Kind(Kind::Fifo)),
            ],
        ),
        applied(
            "L06: a file replaces a device and is not written into it",
            vec![archive([&Member::device(b'3', "x", 1, 3), &Member::file("x", "in")])],
            &[("/x", crate::text("in"))],
        ),
        applied(
            "L06: a device of 20 bits",
            vec![archive([&Member::device(b'4', "x", 511, 1_048_575)])],
            &[("/x", Seen::Kind(Kind::Device('b', 511, 1_048_575)))],
        ),
        refused(
            "L06: the device of a deletion is refused",
            archive([&Member::device(b'3', "x", 0, 0)]),
            &["`x`", "deletion"],
        ),
        refused(
            "L06: something below a device is refused",
            archive([&Member::device(b'3', "x", 1, 3), &Member::file("x/y", "")]),
            &["`x/y`"],
        ),
        refused(
            "L06: something below a pipe is refused",
            archive([&Member::new(b'6', "x"), &Member::file("x/y", "")]),
            &["`x/y`"],
        ),
        refused(
            "L06: what stands for a socket elsewhere is refused, not dropped",
            archive([&Member::new(b's', "socket")]),
            &["`socket`", "unknown"],
        ),
        applied(
            "L07: set-user-id, set-group-id, sticky and a capability are kept",
            vec![archive(&privileged())],
            &[
                ("/su", Seen::Mode(0o4755, 0, 0)),
                ("/sg", Seen::Mode(0o2755, 5, 6)),
                ("/all", Seen::Mode(0o7777, 1000, 1000)),
                ("/tmp", Seen::Mode(0o1777, 0, 0)),
                ("/shared", Seen::Mode(0o2775, 0, 50)),
                ("/none", Seen::Mode(0, 0, 0)),
            ],
        ),
    ]
}

fn nodes() -> [Member; 4] {
    [
        Member::device(b'3', "mem", 1, 1).mode(0o640).owner(0, 6),
        Member::device(b'4', "disk", 8, 0).mode(0o660),
        Member::new(b'6', "pipe").mode(0o600).owner(7, 7),
        Member::device(b'3', "null", 1, 3).mode(0o666),
    ]
}

fn expected() -> [(&'static str, Seen); 6] {
    [
        ("/mem", Seen::Kind(Kind::Device('c', 1, 1))),
        ("/mem", Seen::Mode(0o640, 0, 6)),
        ("/disk", Seen::Kind(Kind::Device('b', 8, 0))),
        ("/pipe", Seen::Kind(Kind::Fifo)),
        ("/pipe", Seen::Mode(0o600, 7, 7)),
        ("/null", Seen::Mode(0o666, 0, 0)),
    ]
}

fn privileged() -> [Member; 8] {
    [
        Member::file("su", "x").mode(0o4755),
        Member::file("sg", "x").mode(0o2755).owner(5, 6),
        Member::file("all", "x").mode(0o7777).owner(1000, 1000),
        Member::dir("tmp/").mode(0o1777),
        Member::dir("shared/").mode(0o2775).owner(0, 50),
        Member::file("ping", "x").mode(0o755).pax("SCHILY.xattr.security.capability", CAPABILITY),
        Member::file("none", "x").mode(0),
        Member::file("ping-of-app", "x")
            .mode(0o755)
            .owner(1000, 1000)
            .pax("SCHILY.xattr.security.capability", CAPABILITY),
    ]
}

fn run(who: Who) {
    if let Some(bench) = Bench::new(who) {
        bench.check_all(&cases());
        copies(&bench);
    }
}

/// L06: what copies a tree neither opens a device nor waits for a pipe.
fn copies(bench: &Bench) {
    bench.engine.context("copy", &[("Dockerfile", "FROM scratch\nCOPY --from=base / /copy/\n")]).unwrap();
    let base = bench.layout("nodes", &[Blob::new(&archive(&nodes()))]);
    let out = bench.engine.work().join("copy.tar");
    let run = run_within(bench.build("copy", &base, &format!("--output=type=tar,dest={}", out.display())));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let tree = Tree::from_tar(File::open(&out).unwrap()).unwrap();
    let seen: Vec<_> = owned(&expected()).into_iter().map(|(path, seen)| (format!("/copy{path}"), seen)).collect();
    has(&tree, &seen).unwrap();
}

#[test]
fn special_files_as_root() {
    run(Who::Root);
}

#[test]
fn special_files_as_a_user() {
    run(Who::User);
}

#[test]
fn special_files_with_one_uid() {
    run(Who::OneUid);
}

/// L07: copied by a step, the bits and the capability come out the same, and the layer has the same digest, whoever
/// builds.
#[test]
fn privileges_of_files_make_the_same_layer_whoever_builds() {
    let mut images: Vec<(Who, Image)> = Vec::new();
    for who in [Who::Root, Who::User, Who::OneUid] {
        let Some(bench) = Bench::new(who) else { continue };
        let files = [("Dockerfile", "FROM scratch\nCOPY --from=base / /\n")];
        bench.engine.context("copy", &files).unwrap();
        let base = bench.layout("base", &[Blob::new(&archive(&privileged()))]);
        let out: PathBuf = bench.engine.work().join("copy.tar");
        let run = run_within(bench.build("copy", &base, &format!("--output=type=oci,dest={}", out.display())));
        assert_eq!(run.code, Some(0), "{who:?}: {}", run.stderr);
        let image = image_of_archive(&out).unwrap();
        for name in ["/ping", "/ping-of-app"] {
            let found = image.tree.get(name).unwrap().xattrs.get("security.capability");
            assert_eq!(found.map(Vec::as_slice), Some(&CAPABILITY[..]), "{who:?}: {name}");
        }
        for (name, mode) in
            [("/su", 0o4755), ("/sg", 0o2755), ("/all", 0o7777), ("/tmp", 0o1777), ("/shared", 0o2775), ("/none", 0)]
        {
            assert_eq!(image.tree.get(name).unwrap().mode, mode, "{who:?}: {name}");
        }
        images.push((who, image));
    }
    for pair in images.windows(2) {
        let digests = |index: usize| pair[index].1.layers.iter().map(|layer| layer.digest.clone()).collect::<Vec<_>>();
        assert_eq!(digests(0), digests(1), "{:?} and {:?}", pair[0].0, pair[1].0);
    }
}
