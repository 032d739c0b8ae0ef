//! Arguments, variables and who sees them.

use expect_test::expect;

use super::{config, config_of, graph, graph_of};

#[test]
fn a_global_argument_is_not_visible_in_a_stage_f1_038() {
    config(
        "ARG TAG=3\nFROM alpine:$TAG\nENV SEEN=[$TAG]",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin","SEEN=[]"]
            Cmd: ["sh"]
            + base (inherited)
              ENV SEEN=[]
            os: linux
            warning[UndefinedVar]: Usage of undefined variable '$TAG'
        "#]],
    );
}

#[test]
fn a_global_argument_is_imported_by_name_f1_038() {
    config(
        "ARG TAG=3\nARG FULL=v$TAG\nFROM scratch\nARG FULL\nENV SEEN=[$FULL]",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual","SEEN=[v3]"]
            WorkingDir: /
              ARG FULL=v3
              ENV SEEN=[v3]
            os: linux
        "#]],
    );
}

#[test]
fn build_arguments_override_defaults_f1_038() {
    config_of(
        "ARG A=1\nARG B=$A\nFROM scratch\nARG A\nARG B\nARG C=c\nENV S=$A$B$C",
        |case| {
            case.arg("A", "x");
            case.arg("C", "z");
        },
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual","S=xxz"]
            WorkingDir: /
              ARG A=x
              ARG B=x
              ARG C=z
              ENV S=xxz
            os: linux
        "#]],
    );
}

#[test]
fn an_argument_is_visible_from_its_line_on_and_in_children_f1_039() {
    config(
        "FROM scratch AS a\nENV ONE=[$X]\nARG X=1 Y=$X\nENV TWO=[$X$Y]\nFROM a\nENV THREE=[$X]\nFROM a\nENV FOUR=[$X]",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual","ONE=[]","TWO=[11]","FOUR=[1]"]
            WorkingDir: /
              ENV ONE=[]
              ARG X=1 Y=1
              ENV TWO=[11]
              ENV FOUR=[1]
            os: linux
            warning[UndefinedVar]: Usage of undefined variable '$X'
        "#]],
    );
}

#[test]
fn env_wins_over_a_later_argument_in_the_image_and_arguments_do_not_persist_f1_040() {
    graph(
        "FROM alpine\nENV V=env\nARG V=arg W=w\nRUN echo $V\nENV V=last\nRUN echo",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/3] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "echo $V"] linux/amd64 @4-4 "[2/3] RUN echo arg"
            env=["V=arg", "W=w"]
            bind / <- #0 -> 0
        #2 exec ["/bin/sh", "-c", "echo"] linux/amd64 @6-6 "[3/3] RUN echo"
            env=["W=w", "V=last"]
            bind / <- #1 -> 0
        linux/amd64 = #2
    "##]],
    );
    config(
        "FROM alpine\nENV V=env\nARG V=arg W=w\nRUN echo",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin","V=env"]
            Cmd: ["sh"]
            + base (inherited)
              ENV V=env
              ARG V=arg W=w
            + RUN |2 V=arg W=w /bin/sh -c echo # buildkit
            os: linux
        "#]],
    );
}

#[test]
fn an_argument_is_in_the_environment_from_its_line_on_f1_040() {
    graph(
        "FROM alpine\nRUN one\nARG A=1\nRUN two",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/3] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "one"] linux/amd64 @2-2 "[2/3] RUN one"
            bind / <- #0 -> 0
        #2 exec ["/bin/sh", "-c", "two"] linux/amd64 @4-4 "[3/3] RUN two"
            env=["A=1"]
            bind / <- #1 -> 0
        linux/amd64 = #2
    "##]],
    );
}

#[test]
fn proxies_reach_the_process_outside_of_environment_and_history_f1_041() {
    let setup = |case: &mut super::Case<'_>| {
        case.arg("HTTP_PROXY", "http://p");
        case.arg("no_proxy", "x");
        case.arg("ALL_PROXY", "socks://q");
    };
    graph_of(
        "FROM alpine\nRUN one",
        setup,
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "one"] linux/amd64 @2-2 "[2/2] RUN one"
            proxy=["http://p", "", "", "x", "socks://q"]
            bind / <- #0 -> 0
        linux/amd64 = #1
    "##]],
    );
    config_of(
        "FROM alpine\nRUN one",
        setup,
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin"]
            Cmd: ["sh"]
            + base (inherited)
            + RUN /bin/sh -c one # buildkit
            os: linux
        "#]],
    );
}

#[test]
fn a_declared_proxy_is_an_ordinary_argument_f1_041() {
    graph_of(
        "FROM alpine\nARG HTTP_PROXY\nRUN one",
        |case| case.arg("HTTP_PROXY", "http://p"),
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "one"] linux/amd64 @3-3 "[2/2] RUN one"
            env=["HTTP_PROXY=http://p"] proxy=["http://p", "", "", "", ""]
            bind / <- #0 -> 0
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn platform_arguments_exist_globally_and_are_imported_f1_042() {
    config_of(
        "FROM scratch AS web\nARG TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT TARGETOSVERSION TARGETSTAGE\nARG BUILDPLATFORM BUILDOS BUILDARCH BUILDVARIANT BUILDOSVERSION",
        |case| case.request.platforms = vec![super::platform("linux/arm/v7")],
        expect![[r#"
            architecture: arm
            Env: ["PATH=usual"]
            WorkingDir: /
              ARG TARGETPLATFORM=linux/arm/v7 TARGETOS=linux TARGETARCH=arm TARGETVARIANT=v7 TARGETOSVERSION= TARGETSTAGE=web
              ARG BUILDPLATFORM=linux/amd64 BUILDOS=linux BUILDARCH=amd64 BUILDVARIANT= BUILDOSVERSION=
            os: linux
            variant: v7
        "#]],
    );
    config(
        "FROM scratch\nARG TARGETSTAGE\nARG TARGETARCH=other",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
              ARG TARGETSTAGE=default
              ARG TARGETARCH=other
            os: linux
        "#]],
    );
}

#[test]
fn platform_arguments_can_be_overridden_f1_042() {
    config_of(
        "FROM scratch\nARG TARGETARCH",
        |case| case.arg("TARGETARCH", "mips"),
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
              ARG TARGETARCH=mips
            os: linux
        "#]],
    );
}

#[test]
fn a_build_argument_that_nothing_declares_is_warned_of_f1_043() {
    config_of(
        "ARG A\nFROM scratch\nARG VERSION",
        |case| {
            for name in ["VERSOIN", "A", "TARGETOS", "http_proxy", "BUILDKIT_INLINE_CACHE"] {
                case.arg(name, "1");
            }
        },
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
              ARG VERSION
            os: linux
            warning[unconsumed-build-arg]: build argument `VERSOIN` is not declared by any ARG that the target needs
        "#]],
    );
}

#[test]
fn settings_among_the_build_arguments_are_read_f1_044() {
    graph_of(
        "FROM alpine\nRUN --mount=type=cache,target=/c x",
        |case| {
            case.arg("BUILDKIT_SANDBOX_HOSTNAME", "box");
            case.arg("BUILDKIT_CACHE_MOUNT_NS", "ns");
            case.arg("BUILDKIT_MULTI_PLATFORM", "1");
        },
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[linux/amd64 stage-0 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[linux/amd64 stage-0 2/2] RUN --mount=type=cache,target=/c x"
            hostname=box
            bind / <- #0 -> 0
            cache ns//c /c <- -
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn words_are_expanded_where_the_reference_says_so_f1_030() {
    graph(
        "FROM alpine\nENV D=/x U=me M=644\nWORKDIR $D/y\nCOPY --chown=$U --chmod=$M ${D#/}a* $D/\nUSER $U\nRUN echo $D",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/4] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 file @3-3 "[2/4] WORKDIR /x/y"
            #0: mkdir /x/y 755 parents=true -> 0
        #2 source local://context "[internal] load build context"
            local.followpaths = ["xa*"]
            local.sharedkeyhint = context
        #3 file @4-4 "[3/4] COPY --chown=me --chmod=644 xa* /x/"
            #1: copy #2/xa* /x/ owner=me@#1:- mode=644 follow contents create wildcard empty-wildcard -> 0
        #4 exec ["/bin/sh", "-c", "echo $D"] linux/amd64 @6-6 "[4/4] RUN echo /x"
            env=["D=/x", "U=me", "M=644"] cwd=/x/y user=me
            bind / <- #3 -> 0
        linux/amd64 = #4
    "##]],
    );
}

#[test]
fn defaults_alternatives_and_replacements_work_f1_031_to_f1_036() {
    config(
        "FROM scratch\nENV v=foo.tar.gz e=\nENV a=${e:-w} b=${e-w} c=${v:+w} d=${u+w} f=${v%.*} g=${v##*.} h=${v/o/0} i=${v//o/0} j='$v' k=\\$v l=\"$v x\"",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual","v=foo.tar.gz","e=","a=w","b=","c=w","d=","f=foo.tar","g=gz","h=f0o.tar.gz","i=f00.tar.gz","j=$v","k=$v","l=foo.tar.gz x"]
            WorkingDir: /
              ENV v=foo.tar.gz e=
              ENV a=w b= c=w d= f=foo.tar g=gz h=f0o.tar.gz i=f00.tar.gz j=$v k=$v l=foo.tar.gz x
            os: linux
            warning[UndefinedVar]: Usage of undefined variable '$u' (did you mean $v?)
        "#]],
    );
}
