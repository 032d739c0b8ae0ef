//! Stages, what they start from, named contexts and triggers.

use expect_test::expect;

use super::{config_of, graph, graph_of, run};

#[test]
fn a_base_is_pinned_and_named_f1_050() {
    graph(
        "FROM alpine:3.20 AS base\nRUN true",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:3.20@sha256:45ee4c5 linux/amd64 @1-1 "[1/2] FROM docker.io/library/alpine:3.20@sha256:45ee4c5"
        #1 exec ["/bin/sh", "-c", "true"] linux/amd64 @2-2 "[2/2] RUN true"
            bind / <- #0 -> 0
        linux/amd64 = #1
    "##]],
    );
    graph(
        "ARG TAG=3\nFROM ghcr.io/o/app:$TAG\nRUN true",
        expect![[r##"
        #0 source docker-image://ghcr.io/o/app:3@sha256:3d57241 linux/amd64 @2-2 "[1/2] FROM ghcr.io/o/app:3@sha256:3d57241"
        #1 exec ["/bin/sh", "-c", "true"] linux/amd64 @3-3 "[2/2] RUN true"
            bind / <- #0 -> 0
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn a_given_digest_stays_beside_its_tag_f1_050() {
    let text = "FROM alpine:3@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let (case, lowered) = run(text, |_| {});
    assert_eq!(
        case.asked,
        [["docker-image://docker.io/library/".to_owned() + &text["FROM ".len()..] + " for linux/amd64"]]
    );
    assert!(
        lowered.unwrap().results[0]
            .base
            .as_ref()
            .unwrap()
            .identifier
            .starts_with("docker-image://docker.io/library/alpine:3@sha256:")
    );
}

#[test]
fn a_stage_inherits_tree_config_and_arguments_f1_052_f1_039() {
    graph(
        "FROM alpine AS a\nARG X=1\nENV Y=2\nWORKDIR /w\nUSER u\nRUN one\nFROM a AS b\nRUN two",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[a 1/3] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 file @4-4 "[a 2/3] WORKDIR /w"
            #0: mkdir /w 755 parents=true -> 0
        #2 exec ["/bin/sh", "-c", "one"] linux/amd64 @6-6 "[a 3/3] RUN one"
            env=["X=1", "Y=2"] cwd=/w user=u
            bind / <- #1 -> 0
        #3 exec ["/bin/sh", "-c", "two"] linux/amd64 @8-8 "[b 1/1] RUN two"
            env=["X=1", "Y=2"] cwd=/w user=u
            bind / <- #2 -> 0
        linux/amd64 = #3
    "##]],
    );
}

#[test]
fn stages_that_are_not_needed_are_not_in_the_graph_f1_054() {
    let (case, lowered) =
        run("FROM missing AS a\nRUN a\nFROM alpine AS b\nRUN b\nFROM scratch\nCOPY --from=b /x /", |_| {});
    assert_eq!(case.asked, [["docker-image://docker.io/library/alpine:latest for linux/amd64"]]);
    expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @3-3 "[b 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "b"] linux/amd64 @4-4 "[b 2/2] RUN b"
            bind / <- #0 -> 0
        #2 file @6-6 "[stage-2 1/1] COPY --from=b /x /"
            -: copy #1/x / follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #2
    "##]].assert_eq(&super::render::graph(&lowered.unwrap()));
}

#[test]
fn all_bases_are_asked_for_in_one_round() {
    let (case, _) = run(
        "FROM one AS a\nFROM two AS b\nFROM three\nCOPY --from=a / /\nCOPY --from=b / /\nCOPY --from=four / /\nCOPY x /",
        |_| {},
    );
    expect![[r#"
        [
            [
                "docker-image://docker.io/library/four:latest for linux/amd64",
                "docker-image://docker.io/library/one:latest for linux/amd64",
                "docker-image://docker.io/library/three:latest for linux/amd64",
                "docker-image://docker.io/library/two:latest for linux/amd64",
                "context:.dockerignore",
                "dockerfile:Dockerfile.dockerignore",
            ],
        ]
    "#]]
    .assert_debug_eq(&case.asked);
}

#[test]
fn a_target_is_a_name_or_a_number_f1_056() {
    let names = ["A", "a", "0"].map(|target| {
        let lowered = super::lowered("FROM alpine AS a\nRUN one\nFROM a AS b\nRUN two", |case| {
            case.request.target = Some(target.into());
        });
        lowered.results[0].root.as_ref().map(|root| root.vertex.name())
    });
    assert_eq!(names, ["A", "a", "0"].map(|_| Some("[a 2/2] RUN one".to_owned())));
}

#[test]
fn a_copy_may_name_a_stage_by_number_f1_094() {
    graph(
        "FROM alpine\nRUN one\nFROM scratch\nCOPY --from=0 /x /y",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[stage-0 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "one"] linux/amd64 @2-2 "[stage-0 2/2] RUN one"
            bind / <- #0 -> 0
        #2 file @4-4 "[stage-1 1/1] COPY --from=0 /x /y"
            -: copy #1/x /y follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #2
    "##]],
    );
}

#[test]
fn a_copy_from_an_image_asks_for_it_and_names_it_without_a_number_f1_094() {
    graph(
        "FROM scratch\nCOPY --from=busybox /bin/sh /sh",
        expect![[r##"
        #0 source docker-image://docker.io/library/busybox:latest@sha256:f372f3b linux/amd64 @2-2 "FROM docker.io/library/busybox:latest@sha256:f372f3b"
        #1 file @2-2 "[stage-0 1/1] COPY --from=busybox /bin/sh /sh"
            -: copy #0/bin/sh /sh follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn no_cache_marks_the_steps_of_the_stages_named() {
    graph_of(
        "FROM alpine AS a\nRUN one\nWORKDIR /w\nFROM a AS b\nRUN two\nCOPY x y",
        |case| case.request.no_cache = crate::NoCache::Stages(vec!["B".into()]),
        expect![[r##"
            #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[a 1/3] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
            #1 exec ["/bin/sh", "-c", "one"] linux/amd64 @2-2 "[a 2/3] RUN one"
                bind / <- #0 -> 0
            #2 file @3-3 "[a 3/3] WORKDIR /w"
                #1: mkdir /w 755 parents=true -> 0
            #3 exec ["/bin/sh", "-c", "two"] linux/amd64 @5-5 no-cache "[b 1/2] RUN two"
                cwd=/w
                bind / <- #2 -> 0
            #4 source local://context "[internal] load build context"
                local.followpaths = ["x"]
                local.sharedkeyhint = context
            #5 file @6-6 no-cache "[b 2/2] COPY x y"
                #3: copy #4/x /w/y follow contents create wildcard empty-wildcard -> 0
            linux/amd64 = #5
        "##]],
    );
}

#[test]
fn an_image_without_layers_is_the_empty_tree() {
    graph_of(
        "FROM hollow\nCOPY a /",
        |case| {
            case.images.insert(
                "docker-image://docker.io/library/hollow:latest",
                r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}"#,
            );
        },
        expect![[r##"
            #0 source local://context "[internal] load build context"
                local.followpaths = ["a"]
                local.sharedkeyhint = context
            #1 file @2-2 "[1/2] COPY a /"
                -: copy #0/a / follow contents create wildcard empty-wildcard -> 0
            linux/amd64 = #1
        "##]],
    );
}

#[test]
fn a_named_context_replaces_an_image_f1_057() {
    graph_of(
        "FROM alpine\nRUN x",
        |case| case.context("alpine", "docker-image://debian:12"),
        expect![[r##"
            #0 source docker-image://docker.io/library/debian:12@sha256:53b9f46 linux/amd64 "[context alpine] debian:12"
            #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[1/2] RUN x"
                bind / <- #0 -> 0
            linux/amd64 = #1
        "##]],
    );
    graph_of(
        "FROM alpine\nRUN x",
        |case| case.context("docker.io/library/alpine:latest", "docker-image://scratch"),
        expect![[r##"
        #0 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[1/2] RUN x"
            bind / <- - -> 0
        linux/amd64 = #0
    "##]],
    );
}

#[test]
fn a_named_context_replaces_a_stage_f1_057() {
    graph_of(
        "FROM alpine AS base\nRUN x\nFROM base\nRUN y",
        |case| case.context("base", "docker-image://debian"),
        expect![[r##"
            #0 source docker-image://docker.io/library/debian:latest@sha256:679494a linux/amd64 "[context base] debian"
            #1 exec ["/bin/sh", "-c", "y"] linux/amd64 @4-4 "[stage-1 1/1] RUN y"
                bind / <- #0 -> 0
            linux/amd64 = #1
        "##]],
    );
}

#[test]
fn an_oci_layout_is_a_base_f1_057() {
    let text = "FROM base\nRUN x";
    graph_of(
        text,
        |case| case.context("base", "oci-layout:///some/dir:v1"),
        expect![[r##"
        #0 source oci-layout://docker.io/library/base@sha256:733a545 linux/amd64 "[context base] OCI load from client"
            oci.store = /some/dir
        #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[1/2] RUN x"
            bind / <- #0 -> 0
        linux/amd64 = #1
    "##]],
    );
    let (case, lowered) = run(text, |case| case.context("base", "oci-layout://dir"));
    assert_eq!(case.asked, [["oci-layout://dir for linux/amd64"]]);
    let base = lowered.unwrap().results.remove(0).base.unwrap();
    assert!(base.identifier.starts_with("oci-layout://docker.io/library/base@sha256:"));
    assert!(base.edge.is_some());
}

#[test]
fn a_named_directory_is_a_local_source_with_its_own_ignore_file_f1_057() {
    let text = "FROM scratch\nCOPY --from=src a /a\nCOPY --from=src ./b/c /c\nCOPY d /d";
    graph_of(
        text,
        |case| {
            case.context("src", "../src");
            case.files.insert(("src", ".dockerignore"), "*.tmp\n");
            case.files.insert(("context", ".dockerignore"), "# note\n/node_modules/\n!keep\n");
        },
        expect![[r##"
            #0 source local://src "[context src] load from client"
                local.excludepatterns = ["*.tmp"]
                local.followpaths = ["a"]
                local.sharedkeyhint = context:src-
            #1 file @2-2 "[stage-0 1/3] COPY --from=src a /a"
                -: copy #0/a /a follow contents create wildcard empty-wildcard -> 0
            #2 source local://src "[context src] load from client"
                local.excludepatterns = ["*.tmp"]
                local.followpaths = ["b/c"]
                local.sharedkeyhint = context:src-
            #3 file @3-3 "[stage-0 2/3] COPY --from=src ./b/c /c"
                #1: copy #2/b/c /c follow contents create wildcard empty-wildcard -> 0
            #4 source local://context "[internal] load build context"
                local.excludepatterns = ["node_modules","!keep"]
                local.followpaths = ["d"]
                local.sharedkeyhint = context
            #5 file @4-4 "[stage-0 3/3] COPY d /d"
                #3: copy #4/d /d follow contents create wildcard empty-wildcard -> 0
            linux/amd64 = #5
        "##]],
    );
}

#[test]
fn the_ignore_file_of_the_dockerfile_wins() {
    graph_of(
        "FROM scratch\nCOPY . /",
        |case| {
            case.request.file_name = "docker/app.Dockerfile".into();
            case.files.insert(("dockerfile", "app.Dockerfile.dockerignore"), "one\n");
            case.files.insert(("context", ".dockerignore"), "two\n");
        },
        expect![[r##"
            #0 source local://context "[internal] load build context"
                local.excludepatterns = ["one"]
                local.sharedkeyhint = context
            #1 file @2-2 "[1/1] COPY . /"
                -: copy #0/ / follow contents create wildcard empty-wildcard -> 0
            linux/amd64 = #1
        "##]],
    );
}

#[test]
fn a_directory_may_be_a_base_f1_057() {
    graph_of(
        "FROM root\nRUN x",
        |case| case.context("root", "/srv/root"),
        expect![[r##"
        #0 source local://root "[context root] load from client"
            local.sharedkeyhint = context:root-
        #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[1/2] RUN x"
            bind / <- #0 -> 0
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn git_and_http_contexts_are_sources_f1_057() {
    graph_of(
        "FROM scratch\nCOPY --from=g / /g\nCOPY --from=h / /h",
        |case| {
            case.context("g", "https://example.com/r.git#v1:sub");
            case.context("h", "https://example.com/x.tar");
        },
        expect![[r##"
            #0 source git://example.com/r.git#v1:sub "[internal] load git source https://example.com/r.git"
                git.authheadersecret = GIT_AUTH_HEADER
                git.authtokensecret = GIT_AUTH_TOKEN
                git.fullurl = https://example.com/r.git
            #1 file @2-2 "[stage-0 1/2] COPY --from=g / /g"
                -: copy #0/ /g follow contents create wildcard empty-wildcard -> 0
            #2 source https://example.com/x.tar "[context h] https://example.com/x.tar"
                http.filename = context
            #3 file @3-3 "[stage-0 2/2] COPY --from=h / /h"
                #1: copy #2/ /h follow contents create wildcard empty-wildcard -> 0
            linux/amd64 = #3
        "##]],
    );
}

#[test]
fn a_context_for_one_platform_comes_before_one_for_all_f1_057() {
    graph_of(
        "FROM alpine\nRUN x",
        |case| {
            case.context("alpine", "docker-image://one");
            case.context("alpine::linux/amd64", "docker-image://two");
        },
        expect![[r##"
            #0 source docker-image://docker.io/library/two:latest@sha256:d0d485c linux/amd64 "[context alpine::linux/amd64] two"
            #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[1/2] RUN x"
                bind / <- #0 -> 0
            linux/amd64 = #1
        "##]],
    );
}

#[test]
fn triggers_of_a_stage_run_in_its_child_but_not_its_grandchild_f1_126() {
    graph(
        "FROM alpine AS a\nONBUILD RUN one\nFROM a AS b\nRUN two\nFROM b\nRUN three",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[a 1/1] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "one"] linux/amd64 @3-3 "[b 1/2] ONBUILD RUN one"
            bind / <- #0 -> 0
        #2 exec ["/bin/sh", "-c", "two"] linux/amd64 @4-4 "[b 2/2] RUN two"
            bind / <- #1 -> 0
        #3 exec ["/bin/sh", "-c", "three"] linux/amd64 @6-6 "[stage-2 1/1] RUN three"
            bind / <- #2 -> 0
        linux/amd64 = #3
    "##]],
    );
}

#[test]
fn triggers_of_an_image_run_first_and_may_need_more_images_f1_126() {
    let config = r#"{"architecture":"amd64","os":"linux","config":{"OnBuild":["COPY --from=tools /t /t","COPY . /src","RUN make"]},
        "rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"x"}]}"#;
    let setup = |case: &mut super::Case<'_>| {
        case.images.insert("docker-image://docker.io/library/onbuild:latest", config);
    };
    let (case, lowered) = run("FROM onbuild\nUSER me", setup);
    expect![[r#"
        [
            [
                "docker-image://docker.io/library/onbuild:latest for linux/amd64",
            ],
            [
                "docker-image://docker.io/library/tools:latest for linux/amd64",
                "context:.dockerignore",
                "dockerfile:Dockerfile.dockerignore",
            ],
        ]
    "#]]
    .assert_debug_eq(&case.asked);
    expect![[r##"
        #0 source docker-image://docker.io/library/onbuild:latest@sha256:bac5786 linux/amd64 @1-1 "[1/1] FROM docker.io/library/onbuild:latest@sha256:bac5786"
        #1 source docker-image://docker.io/library/tools:latest@sha256:b17e37a linux/amd64 @1-1 "FROM docker.io/library/tools:latest@sha256:b17e37a"
        #2 file @1-1 "[2/4] ONBUILD COPY --from=tools /t /t"
            #0: copy #1/t /t follow contents create wildcard empty-wildcard -> 0
        #3 source local://context "[internal] load build context"
            local.sharedkeyhint = context
        #4 file @1-1 "[3/4] ONBUILD COPY . /src"
            #2: copy #3/ /src follow contents create wildcard empty-wildcard -> 0
        #5 exec ["/bin/sh", "-c", "make"] linux/amd64 @1-1 "[4/4] ONBUILD RUN make"
            bind / <- #4 -> 0
        linux/amd64 = #5
    "##]].assert_eq(&super::render::graph(&lowered.unwrap()));
    config_of(
        "FROM onbuild\nUSER me",
        setup,
        expect![[r#"
            architecture: amd64
            User: me
            Env: ["PATH=usual"]
            + x (inherited)
            + COPY /t /t # buildkit
            + COPY . /src # buildkit
            + RUN /bin/sh -c make # buildkit
              USER me
            os: linux
        "#]],
    );
}
