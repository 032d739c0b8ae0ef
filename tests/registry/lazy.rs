//! Bases are fetched when a step reads their files, and not before.

use build_engine_testkit::engine::Who;
use build_engine_testkit::registry::FakeRegistry;

use crate::images::{Form, Image};
use crate::interop::check_image;
use crate::{Bench, EVERYBODY};

const MARKER: &str = "never read\n";

/// A registry with a base of two layers, and how many of them were asked for.
fn registry() -> Option<FakeRegistry> {
    let registry = FakeRegistry::start();
    Image::runnable(MARKER.trim(), Form::Docker)?.put(&registry, "base", "v1");
    Some(registry)
}

/// Layers of the base that were fetched: its config is read as a blob, too.
fn fetched(registry: &FakeRegistry) -> usize {
    let reads = registry.requests_of("GET", "/v2/base/blobs/");
    let config: Vec<String> = reads.iter().filter(|request| request.sent < 2000).map(|it| it.path.clone()).collect();
    reads.len() - config.len()
}

/// F1-098 in part: what changes only the config, and what only adds layers of its own.
#[test]
fn a_build_that_reads_no_file_of_its_base_fetches_no_layer() {
    for who in EVERYBODY {
        for (name, more) in [("label", "LABEL a=b\nENV C=d\n"), ("link", "COPY --link Dockerfile /etc/own\n")] {
            let Some(mut bench) = Bench::new(who) else { return };
            let Some(home) = registry() else { return };
            let dockerfile = format!("FROM {}\n{more}", home.reference("base", "v1"));
            let files = [("Dockerfile", &dockerfile[..])];
            // To the registry of the base, which has its layers.
            let near = home.reference("near", "v1");
            let run = bench.build(name, &files, &["--push", "-t", &near]);
            assert_eq!((run.code, fetched(&home)), (Some(0), 0), "{name}: {}", run.stderr);
            check_image(&home, "near", "v1");
            bench.verify_store();
            // A second build finds everything, and still fetches nothing.
            let run = bench.build(name, &files, &["-t", &near]);
            assert_eq!((run.code, fetched(&home)), (Some(0), 0), "{name}: {}", run.stderr);
            // To another registry, which has to be given them.
            let away = FakeRegistry::start();
            let far = away.reference("far", "v1");
            bench.ok(["push", &near, &far]);
            assert!(fetched(&home) > 0);
            check_image(&away, "far", "v1");
            assert_eq!(away.tag("far", "v1"), home.tag("near", "v1"));
            bench.verify_store();
            // Another store builds it, and the first command that runs in it wants the files.
            bench.empty_store(&format!("other-{name}"));
            home.forget_requests();
            let run = bench.build(name, &files, &["-t", "app"]);
            assert_eq!((run.code, fetched(&home)), (Some(0), 0), "{name}: {}", run.stderr);
            assert_eq!(bench.ok(["run", "--network=none", "app"]), MARKER);
            assert!(fetched(&home) > 0);
            bench.verify_store();
        }
    }
}

#[test]
fn a_build_whose_steps_are_all_known_fetches_no_layer() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let Some(home) = registry() else { return };
        let dockerfile = format!("FROM {}\nRUN cat /marker > /seen\n", home.reference("base", "v1"));
        let files = [("Dockerfile", &dockerfile[..])];
        let archive = bench.engine.work().join("out.tar");
        let output = format!("type=oci,dest={}", archive.display());
        let first = bench.build("app", &files, &["-o", &output]);
        assert_eq!(first.code, Some(0), "{}", first.stderr);
        home.forget_requests();
        let second = bench.build("app", &files, &["-t", "app"]);
        assert_eq!((second.code, fetched(&home)), (Some(0), 0), "{}", second.stderr);
        assert!(second.stderr.contains("CACHED"), "{}", second.stderr);
        // Nobody had to be asked what the name stands for, either.
        assert!(home.requests().is_empty(), "{:#?}", home.requests());
        // Registries that are gone are no reason not to build.
        drop(home);
        assert_eq!(bench.build("app", &files, &["-t", "app"]).code, Some(0));
    }
}

/// The names of a base and of what was built from it may go; what they need is fetched again.
#[test]
fn what_was_pruned_is_fetched_again() {
    let Some(bench) = Bench::new(Who::User) else { return };
    let Some(home) = registry() else { return };
    let base = home.reference("base", "v1");
    let dockerfile = format!("FROM {base}\nLABEL a=b\n");
    let files = [("Dockerfile", &dockerfile[..])];
    assert_eq!(bench.build("app", &files, &["-t", "app"]).code, Some(0));
    bench.ok(["cache", "prune", "--all"]);
    assert_eq!(bench.ok(["run", "--network=none", "app"]), MARKER);
    bench.ok(["images", "rm", "app"]);
    bench.ok(["cache", "prune", "--all"]);
    assert_eq!(bench.build("app", &files, &["-t", "app"]).code, Some(0));
    assert_eq!(bench.ok(["run", "--network=none", "app"]), MARKER);
    bench.verify_store();
}

/// What an earlier attempt left may be wrong. It is noticed when all of it is there, and fetched anew, although a build
/// was unpacking it meanwhile.
#[test]
fn a_damaged_part_of_a_layer_is_fetched_anew_under_the_hands_of_a_build() {
    for who in EVERYBODY {
        let Some(bench) = Bench::new(who) else { return };
        let Some(home) = registry() else { return };
        bench.ok(["images", "ls"]);
        let ingest = bench.engine.store().join("ingest");
        let layers: Vec<String> = home.blobs("base").into_iter().collect();
        for digest in &layers {
            let part = ingest.join(digest.replace(':', "-"));
            bench.write(&part, &"x".repeat(100));
        }
        let dockerfile =
            format!("FROM {}\nRUN cat /marker > /seen\nCMD [\"cat\", \"/seen\"]\n", home.reference("base", "v1"));
        let run = bench.build("app", &[("Dockerfile", &dockerfile)], &["-t", "app"]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert_eq!(bench.ok(["run", "--network=none", "app"]), MARKER);
        bench.verify_store();
        assert_eq!(std::fs::read_dir(&ingest).unwrap().count(), layers.len() - count_of_layers(&home));
    }
}

/// Blobs of the base that are layers.
fn count_of_layers(home: &FakeRegistry) -> usize {
    let (_, manifest) = home.manifest("base", "v1").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["layers"].as_array().unwrap().len()
}
