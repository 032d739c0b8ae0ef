//! What is wrong, where, and what to do about it.

use expect_test::expect;

use super::{mistake, mistake_of};

#[test]
fn a_dockerfile_needs_a_stage() {
    mistake(
        "ARG A=1\n",
        expect![[r#"
        error[no-stage] 1:1: the Dockerfile has no stage to build
        hint: a stage begins with FROM; `FROM scratch` starts from nothing
    "#]],
    );
}

#[test]
fn a_misspelt_stage_is_recognised_when_no_image_has_its_name_f1_094() {
    mistake(
        "FROM scratch AS builder\nFROM scratch\nCOPY --from=biulder /a /",
        expect![[r#"
        error[unknown-stage] 3:13 `biulder`: no stage or image is named `biulder`: cannot use `docker.io/library/biulder:latest`: not found
        hint: a stage named `builder` starts at line 1
    "#]],
    );
}

#[test]
fn an_image_that_cannot_be_found_is_named() {
    mistake(
        "FROM missing:1\n",
        expect![[r#"
            error[unresolved-image] 1:6 `missing:1`: cannot use `docker.io/library/missing:1`: not found
        "#]],
    );
    mistake(
        "FROM scratch\nRUN --mount=from=missing,target=/x y",
        expect![[r#"
        error[unresolved-image] 2:13 `from=missing,target=/x`: cannot use `docker.io/library/missing:latest`: not found
    "#]],
    );
}

#[test]
fn a_stage_must_stand_before_its_use_f1_094() {
    mistake(
        "FROM scratch AS a\nCOPY --from=b /x /\nFROM scratch AS b\nFROM a",
        expect![[r#"
        error[stage-order] 2:13 `b`: cannot copy from stage `b`: it is defined after this one
        hint: move it before this stage
    "#]],
    );
    mistake(
        "FROM scratch AS a\nRUN --mount=from=b,target=/x y\nFROM scratch AS b\nFROM a",
        expect![[r#"
        error[stage-order] 2:13 `from=b,target=/x`: cannot mount from stage `b`: it is defined after this one
        hint: move it before this stage
    "#]],
    );
}

#[test]
fn stages_cannot_need_one_another() {
    mistake(
        "FROM scratch AS a\nCOPY --from=b /x /\nFROM scratch AS b\nCOPY --from=a /x /",
        expect![[r#"
        error[circular-dependency] 4:13 `a`: circular dependency between stages: `a` needs `b` needs `a`
    "#]],
    );
    mistake(
        "FROM scratch AS a\nCOPY --from=a /x /",
        expect![[r#"
        error[circular-dependency] 2:13 `a`: circular dependency between stages: `a` needs `a`
    "#]],
    );
}

#[test]
fn a_stage_number_must_exist_f1_094() {
    mistake(
        "FROM scratch\nFROM scratch\nCOPY --from=7 /x /\nCOPY --from=-1 /x /",
        expect![[r#"
        error[unknown-stage] 3:13 `7`: there is no stage number 7
        hint: stages are numbered from 0 to 1
        error[unknown-stage] 4:13 `-1`: there is no stage number -1
        hint: stages are numbered from 0 to 1
    "#]],
    );
}

#[test]
fn variables_are_not_expanded_in_from_f1_094() {
    mistake(
        "ARG S=a\nFROM scratch AS a\nFROM scratch\nARG S\nCOPY --from=$S /x /",
        expect![[r#"
        error[variable-in-from] 5:13 `$S`: variables are not expanded in --from
        hint: define a stage with FROM and a global ARG, and name that stage
    "#]],
    );
}

#[test]
fn an_unknown_target_gets_a_suggestion_f1_056() {
    mistake_of(
        "FROM scratch AS release\nFROM scratch AS debug",
        |case| case.request.target = Some("relaese".into()),
        expect![[r#"
        error[unknown-target] 1:1: no stage is named `relaese`
        hint: did you mean `release`, which starts at line 1?
    "#]],
    );
    mistake_of(
        "FROM scratch AS release",
        |case| case.request.target = Some("3".into()),
        expect![[r#"
        error[unknown-target] 1:1: no stage is named `3`
    "#]],
    );
}

#[test]
fn a_platform_must_be_one_f1_053() {
    mistake(
        "FROM --platform=gibberish scratch",
        expect![[r#"
        error[invalid-platform] 1:17 `gibberish`: `gibberish` is not a platform: expected os/architecture or os/architecture/variant, for example linux/arm64
    "#]],
    );
    mistake(
        "FROM --platform=$TARGTPLATFORM scratch",
        expect![[r#"
        error[invalid-platform] 1:17 `$TARGTPLATFORM`: empty platform value from expression `$TARGTPLATFORM`
        hint: did you mean `$TARGETPLATFORM`?
    "#]],
    );
}

#[test]
fn a_base_must_not_be_empty_and_must_be_a_reference_f1_050() {
    mistake(
        "ARG IMAGE\nFROM $IMAGE\nFROM Alpine AS b",
        expect![[r#"
        error[empty-base] 2:6 `$IMAGE`: base name `$IMAGE` is empty
    "#]],
    );
    mistake(
        "FROM Alpine\nFROM scratch",
        expect![[r#"
            error[invalid-reference] 1:6 `Alpine`: `Alpine` is not an image reference: the repository name must be lower case
        "#]],
    );
}

#[test]
fn ports_volumes_signals_and_modes_are_checked_f1_123_f1_124_f1_127_f1_096() {
    mistake(
        "FROM scratch\nEXPOSE 80 http\nARG V\nVOLUME /a $V\nSTOPSIGNAL SIGFOO\nCOPY --chmod=9 a /\nCOPY --chmod=u+q a /",
        expect![[r#"
            error[invalid-port] 2:11 `http`: invalid port `http`: `http` is not a number
            error[empty-volume] 4:11 `$V`: a volume cannot be an empty string
            error[invalid-signal] 5:12 `SIGFOO`: `SIGFOO` is not a signal
            hint: a name such as SIGTERM or a number
            error[invalid-chmod] 6:1 `COPY --chmod=9 a /`: invalid value `9` of --chmod: it should be an octal number between 0 and 07777, or symbolic such as `u+x`
            error[invalid-chmod] 7:1 `COPY --chmod=u+q a /`: invalid value `u+q` of --chmod: it should be an octal number between 0 and 07777, or symbolic such as `u+x`
        "#]],
    );
}

#[test]
fn a_required_variable_stops_the_build_f1_033() {
    mistake(
        "FROM scratch\nENV A=\"${B:?must be set}\"",
        expect![[r#"
        error[expansion] 2:7 `"${B:?must be set}"`: failed to process "\"${B:?must be set}\"": B: must be set
    "#]],
    );
}

#[test]
fn copy_takes_no_urls_and_a_checksum_needs_one_f1_103_f1_105() {
    mistake(
        "FROM scratch\nCOPY https://example.com/x /\nCOPY https://example.com/r.git /\nADD --checksum=sha256:00 a /\nADD --checksum=sha256:00 https://example.com/x /\nADD --keep-git-dir=true https://example.com/r.git?keep-git-dir=false /\nADD https://example.com/r.git?colour=red /",
        expect![[r#"
            error[invalid-source] 2:6 `https://example.com/x`: `https://example.com/x` is a URL: COPY takes paths only
            hint: use ADD
            error[invalid-source] 3:6 `https://example.com/r.git`: `https://example.com/r.git` is a git repository: COPY takes paths only
            hint: use ADD
            error[checksum] 4:16 `sha256:00`: --checksum needs an http, https or git source
            error[invalid-source] 5:26 `https://example.com/x`: invalid --checksum: `sha256:00` is not a digest: expected sha256 or sha512, a colon, and lower-case hexadecimal digits
            error[invalid-source] 6:25 `https://example.com/r.git?keep-git-dir=false`: --keep-git-dir and `keep-git-dir` of the URL contradict each other
            error[invalid-source] 7:5 `https://example.com/r.git?colour=red`: unexpected query `colour`
        "#]],
    );
}

#[test]
fn mounts_are_checked_after_expansion_f1_076() {
    mistake(
        "FROM alpine\nARG U=x\nRUN --mount=type=cache,target=/c,uid=$U a\nRUN --mount=type=bind,target=/ b",
        expect![[r#"
        error[mount] 3:13 `type=cache,target=/c,uid=$U`: invalid value x for uid
        error[mount] 4:13 `type=bind,target=/`: invalid mount target `/`
    "#]],
    );
}

#[test]
fn a_trigger_that_cannot_be_read_points_at_the_stage_that_runs_it_f1_126() {
    mistake_of(
        "FROM onbuild\n",
        |case| {
            case.images
                .insert("docker-image://docker.io/library/onbuild:latest", r#"{"config":{"OnBuild":["FLY away"]}}"#);
        },
        expect![[r#"
            error[unknown-instruction] 1:1 `FROM onbuild`: trigger `FLY away` of the base: unknown instruction: FLY
        "#]],
    );
}

#[test]
fn a_config_that_is_not_json_is_a_mistake_of_the_image() {
    mistake_of(
        "FROM odd\n",
        |case| {
            case.images.insert("docker-image://docker.io/library/odd:latest", "{");
        },
        expect![[r#"
            error[invalid-image] 1:6 `odd`: the config of `docker-image://docker.io/library/odd:latest` cannot be read: EOF while parsing an object at line 1 column 1
        "#]],
    );
}

#[test]
fn a_bad_ignore_file_is_named() {
    mistake_of(
        "FROM scratch\nCOPY . /",
        |case| {
            case.files.insert(("context", ".dockerignore"), "ok\n[a\n");
        },
        expect![[r#"
        error[invalid-ignore-file] 1:1: invalid pattern in `.dockerignore`: line 2: malformed pattern: `[a`
    "#]],
    );
}

#[test]
fn an_epoch_that_is_no_number_is_refused_f1_045() {
    mistake_of(
        "FROM scratch",
        |case| case.arg("SOURCE_DATE_EPOCH", "nothing"),
        expect![[r#"
        error[invalid-build-arg] 1:1: SOURCE_DATE_EPOCH is `nothing`: it is neither a number of seconds nor the name of a context or stage
    "#]],
    );
}

#[test]
fn a_named_context_of_an_unknown_kind_is_refused_f1_057() {
    mistake_of(
        "FROM base",
        |case| case.context("base", "ftp://x"),
        expect![[r#"
            error[invalid-context] 1:6 `base`: invalid build context `base`: unsupported kind of context `ftp`
        "#]],
    );
}

#[test]
fn several_platforms_need_an_index_f1_044() {
    mistake_of(
        "FROM scratch",
        |case| {
            case.request.platforms = vec![super::platform("linux/amd64"), super::platform("linux/arm64")];
            case.arg("BUILDKIT_MULTI_PLATFORM", "0");
        },
        expect![[r#"
        error[invalid-build-arg] 1:1: several platforms cannot be built with BUILDKIT_MULTI_PLATFORM off
    "#]],
    );
}

#[test]
fn mistakes_of_several_instructions_are_reported_together() {
    mistake(
        "FROM scratch\nEXPOSE a\nEXPOSE b",
        expect![[r#"
        error[invalid-port] 2:8 `a`: invalid port `a`: `a` is not a number
        error[invalid-port] 3:8 `b`: invalid port `b`: `b` is not a number
    "#]],
    );
}

#[test]
fn many_runs_with_a_large_environment_are_refused() {
    let text = format!("FROM scratch\nENV A={}\n{}", "x".repeat(1_000_000), "RUN x\n".repeat(135));
    mistake(
        &text,
        expect![[r#"
        error[limit] 137:1 `RUN x`: the environments of all RUNs take more than 128 MiB
    "#]],
    );
}
