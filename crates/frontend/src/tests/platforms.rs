//! Platforms.

use expect_test::expect;

use super::{config_of, graph_of, lowered, platform};

#[test]
fn each_platform_has_a_result_and_shares_what_does_not_depend_on_it_f1_058() {
    graph_of(
        "FROM --platform=$BUILDPLATFORM golang AS build\nRUN make\nFROM alpine\nCOPY --from=build /x /",
        |case| case.request.platforms = vec![platform("linux/amd64"), platform("linux/arm64")],
        expect![[r##"
            #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @3-3 "[linux/amd64 stage-1 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
            #1 source docker-image://docker.io/library/golang:latest@sha256:ded785d linux/amd64 @1-1 "[linux/amd64 build 1/2] FROM docker.io/library/golang:latest@sha256:ded785d"
            #2 exec ["/bin/sh", "-c", "make"] linux/amd64 @2-2 "[linux/amd64 build 2/2] RUN make"
                bind / <- #1 -> 0
            #3 file @4-4 "[linux/amd64 stage-1 2/2] COPY --from=build /x /"
                #0: copy #2/x / follow contents create wildcard empty-wildcard -> 0
            #4 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/arm64 @3-3 "[linux/arm64 stage-1 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
            #5 file @4-4 "[linux/arm64 stage-1 2/2] COPY --from=build /x /"
                #4: copy #2/x / follow contents create wildcard empty-wildcard -> 0
            linux/amd64 = #3
            linux/arm64 = #5
        "##]],
    );
}

#[test]
fn a_stage_that_compiles_for_another_platform_says_so_f1_058() {
    graph_of(
        "FROM --platform=$BUILDPLATFORM golang\nARG TARGETARCH\nRUN make",
        |case| {
            case.request.platforms = vec![platform("linux/arm/v7")];
            case.request.multi_platform = true;
        },
        expect![[r##"
            #0 source docker-image://docker.io/library/golang:latest@sha256:ded785d linux/amd64 @1-1 "[linux/amd64 1/2] FROM docker.io/library/golang:latest@sha256:ded785d"
            #1 exec ["/bin/sh", "-c", "make"] linux/amd64 @3-3 "[linux/amd64->arm/v7 2/2] RUN make"
                env=["TARGETARCH=arm"]
                bind / <- #0 -> 0
            linux/arm/v7 = #1
        "##]],
    );
}

#[test]
fn the_config_says_the_platform_asked_for_f1_053() {
    config_of(
        "FROM --platform=linux/amd64 alpine",
        |case| case.request.platforms = vec![platform("linux/arm64")],
        expect![[r#"
            architecture: arm64
            Env: ["PATH=/bin"]
            Cmd: ["sh"]
            + base (inherited)
            os: linux
            warning[FromPlatformFlagConstDisallowed]: FROM --platform flag should not use constant value "linux/amd64"
        "#]],
    );
    config_of(
        "FROM scratch",
        |case| case.request.platforms = vec![platform("linux/arm/v6")],
        expect![[r#"
            architecture: arm
            Env: ["PATH=usual"]
            WorkingDir: /
            os: linux
            variant: v6
        "#]],
    );
}

#[test]
fn without_a_platform_the_base_decides_what_the_config_says_f1_053() {
    config_of(
        "FROM --platform=linux/arm64 alpine\nUSER x",
        |_| {},
        expect![[r#"
            architecture: arm64
            User: x
            Env: ["PATH=/bin"]
            Cmd: ["sh"]
            + base (inherited)
              USER x
            os: linux
            warning[FromPlatformFlagConstDisallowed]: FROM --platform flag should not use constant value "linux/arm64"
        "#]],
    );
}

#[test]
fn scratch_is_for_the_target_whatever_its_flag_says_f1_053() {
    config_of(
        "FROM --platform=linux/s390x scratch\nUSER x",
        |_| {},
        expect![[r#"
            architecture: amd64
            User: x
            Env: ["PATH=usual"]
            WorkingDir: /
              USER x
            os: linux
            warning[FromPlatformFlagConstDisallowed]: FROM --platform flag should not use constant value "linux/s390x"
        "#]],
    );
}

#[test]
fn every_question_for_all_platforms_comes_in_one_round() {
    let (case, _) = super::run("FROM alpine\nCOPY a /", |case| {
        case.request.platforms = vec![platform("linux/amd64"), platform("linux/arm64")];
    });
    expect![[r#"
        [
            [
                "docker-image://docker.io/library/alpine:latest for linux/amd64",
                "docker-image://docker.io/library/alpine:latest for linux/arm64",
                "context:.dockerignore",
                "dockerfile:Dockerfile.dockerignore",
            ],
        ]
    "#]]
    .assert_debug_eq(&case.asked);
}

#[test]
fn the_same_request_gives_the_same_digests() {
    let text = "FROM alpine AS a\nRUN --mount=type=cache,target=/c x\nFROM a\nCOPY --link . /";
    let digest = || lowered(text, |_| {}).results[0].root.as_ref().unwrap().vertex.digest().clone();
    assert_eq!(digest(), digest());
}

/// Nothing may recurse over instructions or stages: the longest file that the parser takes is a chain of as many vertices.
#[test]
fn a_very_long_dockerfile_is_lowered() {
    let runs = "RUN x\n".repeat(9_990);
    lowered(&format!("FROM alpine\n{runs}"), |_| {});
    let stages: String = (1..900).map(|number| format!("FROM s{} AS s{number}\nRUN x\n", number - 1)).collect();
    lowered(&format!("FROM alpine AS s0\n{stages}"), |_| {});
}
