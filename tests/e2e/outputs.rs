//! Every form of output, read by the tools that people have.

use std::fs;
use std::fs::File;

use build_engine_testkit::available;
use build_engine_testkit::engine::Who;
use build_engine_testkit::image::Tree;
use build_engine_testkit::peers::{Peers, output};
use build_engine_testkit::report;
use serde_json::Value;

use crate::Bench;

const FILES: &[(&str, &str)] = &[
    (
        "Dockerfile",
        "FROM base\nLABEL what=test\nRUN mkdir /out && echo made > /out/made && ln /out/made /out/hard && chown app:staff /out/made\n\
         COPY file /out/file\nRUN rm /etc/os-release\nCMD [\"cat\", \"/out/made\"]\n",
    ),
    ("file", "from the context\n"),
];

#[test]
fn an_oci_archive_is_accepted_by_skopeo_and_umoci() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let image = bench.image("context", FILES, &["--tag=example.invalid/x:1"]);
    let archive = bench.engine.work().join("context.tar");
    let Some(peers) = available(Peers::start()) else { return };
    let inspected =
        output(peers.command("skopeo").args(["inspect", &format!("oci-archive:{}", archive.display())])).unwrap();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Digest"], image.digest.as_str());
    assert_eq!(inspected["Labels"]["what"], "test");
    let layout = bench.engine.work().join("layout");
    let (from, to) = (format!("oci-archive:{}", archive.display()), format!("oci:{}:x", layout.display()));
    output(peers.command("skopeo").args(["--insecure-policy", "copy", &from, &to])).unwrap();
    let bundle = bench.engine.work().join("bundle");
    output(peers.command("umoci").args(["unpack", "--image", &format!("{}:x", layout.display())]).arg(&bundle))
        .unwrap();
    assert_eq!(fs::read_to_string(bundle.join("rootfs/out/hard")).unwrap(), "made\n");
    assert!(!bundle.join("rootfs/etc/os-release").exists(), "a whiteout hides what was below");
}

fn loaded_and_started(who: Who) {
    let Some(bench) = Bench::new(who) else { return };
    let archive = bench.engine.work().join("docker.tar");
    let tag = format!("example.invalid/e2e:{who:?}").to_lowercase();
    let run = bench.build(
        "context",
        FILES,
        &[&format!("--output=type=docker,dest={}", archive.display()), &format!("--tag={tag}")],
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let Some(peers) = available(Peers::start()) else { return };
    output(peers.docker().args(["load", "--input"]).arg(&archive)).unwrap();
    assert_eq!(output(peers.docker().args(["run", "--rm", "--network=none", &tag])).unwrap(), "made\n");
    output(peers.containers_tool("podman").args(["load", "--input"]).arg(&archive)).unwrap();
    let mut podman = peers.containers_tool("podman");
    assert_eq!(output(podman.args(["run", "--rm", "--network=none", &tag])).unwrap(), "made\n");
}

#[test]
fn a_docker_archive_of_root_is_loaded_and_started_by_docker_and_podman() {
    loaded_and_started(Who::Root);
}

#[test]
fn a_docker_archive_of_a_user_is_loaded_and_started_by_docker_and_podman() {
    loaded_and_started(Who::User);
}

#[test]
fn an_oci_archive_is_loaded_by_docker_and_podman_too() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    bench.image("context", FILES, &["--tag=example.invalid/oci:1"]);
    let archive = bench.engine.work().join("context.tar");
    let Some(peers) = available(Peers::start()) else { return };
    output(peers.docker().args(["load", "--input"]).arg(&archive)).unwrap();
    output(peers.containers_tool("podman").args(["load", "--input"]).arg(&archive)).unwrap();
}

/// F2-008. All layers, those of the base too, in every form; other tools read them as if nothing were special about them.
#[test]
fn f2_008_every_compression_is_loaded_and_started_by_docker_and_podman() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let Some(peers) = available(Peers::start()) else { return };
    for (compression, media_type, annotation) in [
        ("uncompressed", "tar", None),
        ("gzip,compression-level=9", "tar+gzip", None),
        ("zstd,compression-level=1", "tar+zstd", None),
        ("estargz", "tar+gzip", Some("containerd.io/snapshot/stargz/toc.digest")),
        ("zstd:chunked", "tar+zstd", Some("io.github.containers.zstd-chunked.manifest-checksum")),
    ] {
        let kind = compression.split([',', ':']).next().unwrap();
        let (archive, tag) = (bench.engine.work().join(format!("{kind}.tar")), format!("example.invalid/e2e:{kind}"));
        let output_of =
            format!("--output=type=oci,dest={},compression={compression},force-compression=true", archive.display());
        let run = bench.build("context", FILES, &[&output_of, &format!("--tag={tag}")]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let from = format!("oci-archive:{}", archive.display());
        let raw = output(peers.command("skopeo").args(["inspect", "--raw", &from])).unwrap();
        let manifest: Value = serde_json::from_str(&raw).unwrap();
        for layer in manifest["layers"].as_array().unwrap() {
            assert_eq!(layer["mediaType"], format!("application/vnd.oci.image.layer.v1.{media_type}"), "{raw}");
            assert!(annotation.is_none_or(|key| layer["annotations"][key].is_string()), "{raw}");
        }
        output(peers.docker().args(["load", "--input"]).arg(&archive)).unwrap();
        assert_eq!(output(peers.docker().args(["run", "--rm", "--network=none", &tag])).unwrap(), "made\n");
        output(peers.containers_tool("podman").args(["load", "--input"]).arg(&archive)).unwrap();
        let mut podman = peers.containers_tool("podman");
        assert_eq!(output(podman.args(["run", "--rm", "--network=none", &tag])).unwrap(), "made\n");
    }
}

#[test]
fn a_tar_and_a_folder_have_the_tree_of_the_image() {
    let Some(bench) = Bench::new(Who::Root) else { return };
    let image = bench.image("context", FILES, &[]);
    let tar = bench.engine.work().join("tree.tar");
    let run = bench.build("context", FILES, &[&format!("--output=type=tar,dest={}", tar.display())]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let tree = Tree::from_tar(File::open(&tar).unwrap()).unwrap();
    let different = report::differences(&report::tree(&image.tree, false), &report::tree(&tree, false));
    assert!(different.is_empty(), "{}", different.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));

    let folder = bench.engine.work().join("folder");
    let run = bench.build("context", FILES, &[&format!("--output=type=local,dest={}", folder.display())]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(fs::read_to_string(folder.join("out/made")).unwrap(), "made\n");
    assert_eq!(fs::read_link(folder.join("bin/sh")).unwrap().to_string_lossy(), "busybox");
    assert!(!folder.join("etc/os-release").exists());
}

#[test]
fn a_tar_goes_to_standard_output() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let context = bench.engine.context("context", FILES).unwrap();
    let result = bench.engine.command(bench.args(&context, &["--output=type=tar,dest=-"])).output().unwrap();
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    assert!(Tree::from_tar(&result.stdout[..]).unwrap().get("/out/made").is_some());
}

#[test]
fn a_local_output_of_a_user_belongs_to_the_user() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(bench) = Bench::new(Who::User) else { return };
    let folder = bench.engine.work().join("folder");
    let run = bench.build("context", FILES, &[&format!("--output=type=local,dest={}", folder.display())]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let owner = |path: &std::path::Path| fs::metadata(path).unwrap().uid();
    assert_eq!(owner(&folder.join("out/made")), owner(&bench.engine.work()));
}

#[test]
fn the_metadata_and_the_image_id_are_written() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let (metadata, id) = (bench.engine.work().join("metadata.json"), bench.engine.work().join("id"));
    let image = bench.image(
        "context",
        FILES,
        &[&format!("--metadata-file={}", metadata.display()), &format!("--iidfile={}", id.display()), "--tag=x:1"],
    );
    let metadata: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.digest"], image.digest.as_str());
    assert_eq!(metadata["containerimage.config.digest"], image.manifest["config"]["digest"]);
    assert_eq!(fs::read_to_string(id).unwrap().trim(), image.digest);
}

fn store_and_run(who: Who) {
    let Some(bench) = Bench::new(who) else { return };
    let run = bench.build("context", FILES, &["--tag=shop/x:1"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let run = bench.engine.run(["run", "shop/x:1"]).unwrap();
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "made\n"), "{}", run.stderr);
    let run = bench.engine.run(["run", "shop/x:1", "sh", "-c", "echo other; exit 9"]).unwrap();
    assert_eq!((run.code, run.stdout.as_str()), (Some(9), "other\n"), "{}", run.stderr);
    let child: &[(&str, &str)] = &[("Dockerfile", "FROM shop/x:1\nRUN cat /out/made > /copy\n")];
    let image = bench.image("child", child, &[]);
    assert!(image.tree.get("/copy").is_some(), "an image of the own store is a base");
}

#[test]
fn an_image_of_roots_store_is_run_and_built_on() {
    store_and_run(Who::Root);
}

#[test]
fn an_image_of_a_users_store_is_run_and_built_on() {
    store_and_run(Who::User);
}
