//! From statements to instructions.

use build_engine_dockerfile::{parse, parse_duration, parse_trigger, suggest, suggest_ignoring_case};
use expect_test::{Expect, expect};

use crate::render;

#[expect(clippy::needless_pass_by_value, reason = "expectations are written where they are used")]
fn check(source: &str, expected: Expect) {
    expected.assert_eq(&render::instructions(source));
}

/// F1-038, F1-050, F1-053.
#[test]
fn stages_and_global_arguments() {
    check(
        "ARG TAG=1\nFROM --platform=$BUILDPLATFORM alpine:$TAG AS Build\nRUN a\nFROM build\nFROM scratch as x-1_2.3",
        expect![[r#"
        global arg TAG="1"
        stage alpine:$TAG as build on $BUILDPLATFORM
          run shell "a"
        stage build
        stage scratch as x-1_2.3
    "#]],
    );
}

/// F1-050.
#[test]
fn from_mistakes() {
    check(
        "FROM\nFROM a b\nFROM a AS 1x\nFROM a AS x/y\nFROM a FOR x\nFROM --platfrom=x a\nFROM --platform a",
        expect![[r#"
        stage 
        stage a
        stage a as 1x
        stage a as x/y
        stage a
        stage a
        stage a
        error arguments 1:1..1:5 FROM requires either one or three arguments
        error arguments 2:1..2:9 FROM requires either one or three arguments
        error stage-name 3:11..3:13 invalid name for build stage: "1x", name can't start with a number or contain symbols
        error stage-name 4:11..4:14 invalid name for build stage: "x/y", name can't start with a number or contain symbols
        error arguments 5:1..5:13 FROM requires either one or three arguments
        error unknown-flag 6:6..6:18 unknown flag: --platfrom (did you mean platform?)
        error flag-value 7:6..7:16 missing a value on flag: --platform
    "#]],
    );
}

/// F1-038.
#[test]
fn instructions_before_from_have_no_stage() {
    check(
        "RUN a\nENV b=c\nFROM x",
        expect![[r#"
        stage x
        error no-stage 1:1..1:6 no build stage in current context
          hint only ARG may stand before the first FROM
        error no-stage 2:1..2:8 no build stage in current context
          hint only ARG may stand before the first FROM
    "#]],
    );
}

/// F1-002.
#[test]
fn unknown_instructions_suggest_the_nearest() {
    check(
        "FROM a\nRUNN x\nform y\nEXPOS 80\nFOO bar\nMAINTAINR z",
        expect![[r#"
        stage a
        error unknown-instruction 2:1..2:5 unknown instruction: RUNN (did you mean RUN?)
        error unknown-instruction 3:1..3:5 unknown instruction: form (did you mean from?)
        error unknown-instruction 4:1..4:6 unknown instruction: EXPOS (did you mean EXPOSE?)
        error unknown-instruction 5:1..5:4 unknown instruction: FOO (did you mean FROM?)
        error unknown-instruction 6:1..6:10 unknown instruction: MAINTAINR (did you mean MAINTAINER?)
    "#]],
    );
}

#[test]
fn only_arguments_give_no_stage() {
    check(
        "ARG a",
        expect![[r#"
        global arg a
    "#]],
    );
}

/// F1-095..F1-102.
#[test]
fn copy_and_add_flags() {
    check(
        "FROM a\nCOPY --from=b --chown=1:2 --chmod=u+x --link --parents --exclude=*.a --exclude=b c d /e/\nADD --checksum=sha256:00 --keep-git-dir=true --unpack=False --link=false --exclude=x http://y z",
        expect![[r#"
        stage a
          copy ["c", "d"] -> "/e/" from=b chown=1:2 chmod=u+x link parents exclude=["*.a", "b"]
          add ["http://y"] -> "z" checksum=sha256:00 keep-git-dir=true unpack=false exclude=["x"]
    "#]],
    );
}

/// F1-105.
#[test]
fn copy_flag_mistakes() {
    check(
        "FROM a\nCOPY --chwon=1 b c\nCOPY --from=a --from=b c d\nCOPY --link=maybe b c\nCOPY --link= b c\nCOPY --chown b c\nCOPY --checksum=x b c\nADD --from=x b c",
        expect![[r#"
        stage a
          copy ["b"] -> "c"
          copy ["c"] -> "d" from=a
          copy ["b"] -> "c"
          copy ["b"] -> "c"
          copy ["b"] -> "c"
          copy ["b"] -> "c"
          add ["b"] -> "c"
        error unknown-flag 2:6..2:15 unknown flag: --chwon (did you mean chown?)
        error duplicate-flag 3:15..3:23 duplicate flag specified: --from
        error flag-value 4:6..4:18 expecting boolean value for flag --link, not: maybe
        error flag-value 5:6..5:13 missing a value on flag: --link
        error flag-value 6:6..6:13 missing a value on flag: --chown
        error unknown-flag 7:6..7:18 unknown flag: --checksum
        error unknown-flag 8:5..8:13 unknown flag: --from
    "#]],
    );
}

/// F1-090.
#[test]
fn copy_needs_a_destination() {
    check(
        "FROM a\nCOPY\nCOPY b\nADD b\nCOPY b <<EOF\nx\nEOF",
        expect![[r#"
        stage a
        error arguments 2:1..2:5 COPY requires at least two arguments, but only one was provided. Destination could not be determined
        error arguments 3:1..3:7 COPY requires at least two arguments, but only one was provided. Destination could not be determined
        error arguments 4:1..4:6 ADD requires at least two arguments, but only one was provided. Destination could not be determined
        error arguments 5:8..5:13 COPY cannot accept a heredoc as a destination
    "#]],
    );
}

/// F1-018.
#[test]
fn copy_of_heredocs() {
    check(
        "FROM a\nCOPY <<x b <<-'y' /d/\n1\nx\n\t2\n\ty",
        expect![[r#"
        stage a
          copy ["b"] -> "/d/" <<x "1\n" <<-"y" "\t2\n"
    "#]],
    );
}

/// F1-017, F1-020.
#[test]
fn run_forms() {
    check(
        "FROM a\nRUN b  c\nRUN [\"d\", \"e f\"]\nRUN\nRUN []\nRUN <<E sh -x\nbody\nE",
        expect![[r#"
        stage a
          run shell "b  c"
          run exec ["d", "e f"]
          run shell ""
          run exec []
          run shell "<<E sh -x" <<E "body\n"
    "#]],
    );
}

/// F1-078, F1-079, F1-080.
#[test]
fn run_flags() {
    check(
        "FROM a\nRUN --network=none --security=insecure --device=vendor.com/d=x,required --device=name=y b\nRUN --network=hots b\nRUN --security=x b\nRUN --device=a,b c\nRUN --device=name=a,name=b c\nRUN --device=a,requird=1 c\nRUN --mounts=x c",
        expect![[r#"
        stage a
          run shell "b" network=none security=insecure devices=["vendor.com/d=x,required", "name=y"]
          run shell "b" network=hots
          run shell "b" security=x
          run shell "c" devices=["a,b"]
          run shell "c" devices=["name=a,name=b"]
          run shell "c" devices=["a,requird=1"]
          run shell "c"
        error flag-value 3:15..3:19 invalid network mode "hots"
        error flag-value 4:16..4:17 security "x" is not valid
        error device 5:14..5:17 invalid field 'b' must be a key=value pair
        error device 6:14..6:27 device name already set to a
        error device 7:14..7:25 unexpected key 'requird' in 'requird=1' (did you mean required?)
        error unknown-flag 8:5..8:15 unknown flag: --mounts (did you mean mount?)
    "#]],
    );
}

/// F1-070..F1-074.
#[test]
fn run_mounts() {
    check(
        "FROM a\nRUN --mount=target=/a --mount=type=bind,src=b,dst=/b,rw,from=c --mount=type=cache,target=/c,id=$x,sharing=locked,mode=0755,uid=1,gid=2,ro=false --mount=type=tmpfs,target=/t,size=1.5g --mount=type=secret,id=s,env=S,required --mount=type=ssh,required=true,mode=0600 c",
        expect![[r#"
        stage a
          run shell "c" bind(target=/a) bind(source=b, target=/b, readwrite, from=c) cache(target=/c, id=$x, sharing=locked, mode=0755, uid=1, gid=2, readonly=false) tmpfs(target=/t, size=1.5g) secret(id=s, env=S, required) ssh(required=true, mode=0600)
    "#]],
    );
}

/// F1-075.
#[test]
fn mount_variables_are_left_for_later() {
    check(
        "FROM a\nRUN --mount=type=cache,target=$T,mode=$M,uid=${U},sharing=$S b",
        expect![[r#"
        stage a
          run shell "b" cache(target=$T, mode=$M, uid=${U}, sharing=$S)
    "#]],
    );
}

/// F1-075, F1-076.
#[test]
fn mount_mistakes() {
    check(
        "FROM a\nRUN --mount=type=cahce,target=/a b\nRUN --mount=type=$t,target=/a b\nRUN --mount=type=cache,target=/a,size=1 b\nRUN --mount=type=bind,target=/a,sharing=shared b\nRUN --mount=type=bind,target=/a,required b\nRUN --mount=type=tmpfs,target=/a,mode=0700 b\nRUN --mount=type=cache,target=/a,mode=99999 b\nRUN --mount=type=cache,target=/a,uid=-1 b\nRUN --mount=type=cache,target=/a,sharing=lock b\nRUN --mount=type=tmpfs,target=/a,size=big b\nRUN --mount=type=bind,targe=/a b\nRUN --mount=type=bind,target b\nRUN --mount=type=bind,target=/a,ro=maybe b\nRUN --mount=type=bind,from=$x b\nRUN --mount=type=secret b\nRUN --mount=type=secret,id=a,source=b b\nRUN --mount=type=secret,id=a,from=b b\nRUN --mount=type=secret,id=a,sharing=shared b\nRUN --mount= b\nRUN --mount='type=bind,\"target=/a' b",
        expect![[r#"
        stage a
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
          run shell "b"
        error mount 2:13..2:33 unsupported mount type "cahce" (did you mean cache?)
        error mount 3:13..3:30 'type' doesn't support variable expansion
          hint write the type of the mount as it is
        error mount 4:13..4:40 unexpected key 'size' for mount type 'cache'
        error mount 5:13..5:47 invalid cache sharing set for bind mount
        error mount 6:13..6:41 unexpected key 'required' for mount type 'bind'
        error mount 7:13..7:43 mode not allowed for "tmpfs" type mounts
        error mount 8:13..8:44 invalid value 99999 for mode
        error mount 9:13..9:40 invalid value -1 for uid
        error mount 10:13..10:46 unsupported sharing value "lock" (did you mean locked?)
        error mount 11:13..11:42 invalid value for size: big
        error mount 12:13..12:31 unexpected key 'targe' in 'targe=/a' (did you mean target?)
        error mount 13:13..13:29 invalid field 'target' must be a key=value pair
        error mount 14:13..14:41 invalid value for readonly: maybe
        error mount 15:13..15:30 'from' doesn't support variable expansion, define alias stage instead
          hint `FROM $IMAGE AS alias` with a global ARG, and `from=alias`
        error mount 16:13..16:24 invalid secret mount. one of source, target required
        error mount 17:13..17:38 both source and id can't be set
        error mount 18:13..18:36 secret mount should not have a from
        error mount 19:13..19:44 secret mount should not define sharing
        error mount 20:13..20:13 failed to parse csv mounts: it is empty
        error mount 21:5..21:35 failed to parse csv mounts: a `"` has no partner before column 21
    "#]],
    );
}

/// F1-070.
#[test]
fn mount_values_may_be_quoted() {
    check(
        "FROM a\nRUN --mount='type=bind,\"source=a,b\",target=/c' d",
        expect![[r#"
        stage a
          run shell "d" bind(source=a,b, target=/c)
    "#]],
    );
}

/// F1-076.
#[test]
fn the_type_of_a_mount_may_stand_last() {
    check(
        "FROM a\nRUN --mount=required=true,id=x,type=secret b",
        expect![[r#"
        stage a
          run shell "b" secret(required=true, id=x)
    "#]],
    );
}

/// F1-120.
#[test]
fn commands() {
    check(
        "FROM a\nCMD b c\nCMD [\"d\"]\nENTRYPOINT e\nENTRYPOINT [\"f\", \"g\"]\nENTRYPOINT []\nCMD --x y",
        expect![[r#"
        stage a
          cmd shell "b c"
          cmd exec ["d"]
          entrypoint shell "e"
          entrypoint exec ["f", "g"]
          entrypoint exec []
          cmd shell "y"
        error unknown-flag 7:5..7:8 unknown flag: --x
    "#]],
    );
}

/// F1-129.
#[test]
fn shell_takes_json_only() {
    check(
        "FROM a\nSHELL [\"/bin/bash\", \"-c\"]\nSHELL bash\nSHELL\nSHELL []",
        expect![[r#"
        stage a
          shell ["/bin/bash", "-c"]
        error arguments 3:7..3:11 SHELL requires the arguments to be in JSON form
        error arguments 4:1..4:6 SHELL requires at least one argument
        error arguments 5:1..5:9 SHELL requires at least one argument
    "#]],
    );
}

/// F1-121, F1-122.
#[test]
fn env_and_label() {
    check(
        "FROM a\nENV b=1 c=\"$b\"\nENV d e f\nLABEL g=h \"i j\"=k\nENV =x\nLABEL \"\"=y",
        expect![[r#"
        stage a
          env b="1" c="\"$b\""
          env d="e f" legacy
          label g="h" "i j"="k"
          label ""="y"
        error blank-name 5:5..5:7 ENV names can not be blank
    "#]],
    );
}

/// F1-023, F1-039.
#[test]
fn arguments_and_their_comments() {
    check(
        "# foo sets foo\nARG foo=bar\nFROM x\n# bar defines bar\n# baz is something else\nARG bar baz=1 quoted=\"a b\"\nARG\nARG =x\nARG --y z",
        expect![[r#"
        global arg foo="bar" (sets foo)
        stage x
          arg bar (defines bar) baz="1" (is something else) quoted="\"a b\""
          arg z
        error arguments 7:1..7:4 ARG requires at least one argument
        error blank-name 8:5..8:7 ARG names can not be blank
        error unknown-flag 9:5..9:8 unknown flag: --y
    "#]],
    );
}

/// F1-123.
#[test]
fn expose_is_sorted() {
    check(
        "FROM a\nEXPOSE 8080 80/tcp 7000-7010/udp $p\nEXPOSE",
        expect![[r#"
        stage a
          expose ["$p", "7000-7010/udp", "80/tcp", "8080"]
        error arguments 3:1..3:7 EXPOSE requires at least one argument
    "#]],
    );
}

/// F1-124.
#[test]
fn volume_forms() {
    check(
        "FROM a\nVOLUME /a /b\nVOLUME [\"/c d\", \" /e \"]\nVOLUME [\"\"]\nVOLUME []\nVOLUME",
        expect![[r#"
        stage a
          volume ["/a", "/b"]
          volume ["/c d", "/e"]
        error arguments 4:9..4:11 VOLUME specified can not be an empty string
        error arguments 5:1..5:10 VOLUME requires at least one argument
        error arguments 6:1..6:7 VOLUME requires at least one argument
    "#]],
    );
}

/// F1-125, F1-127, F1-130.
#[test]
fn one_argument_instructions() {
    check(
        "FROM a\nUSER me:us\nWORKDIR /a b\nSTOPSIGNAL $S\nMAINTAINER A B\nUSER\nWORKDIR\nSTOPSIGNAL\nMAINTAINER\nUSER --x y",
        expect![[r#"
        stage a
          user me:us
          workdir /a b
          stopsignal $S
          maintainer A B
          user y
        error arguments 6:1..6:5 USER requires exactly one argument
        error arguments 7:1..7:8 WORKDIR requires exactly one argument
        error arguments 8:1..8:11 STOPSIGNAL requires exactly one argument
        error arguments 9:1..9:11 MAINTAINER requires exactly one argument
        error unknown-flag 10:6..10:9 unknown flag: --x
    "#]],
    );
}

/// F1-128.
#[test]
fn healthcheck_forms() {
    check(
        "FROM a\nHEALTHCHECK none\nHEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=500ms --start-interval=1h --retries=3 CMD curl x\nHEALTHCHECK --interval=0s --retries=0 CMD [\"a\", \"b\"]",
        expect![[r#"
        stage a
          healthcheck none
          healthcheck shell "curl x" interval=90000000000ns timeout=1500000000ns period=500000000ns start=3600000000000ns retries=3
          healthcheck exec ["a", "b"]
    "#]],
    );
}

/// F1-128.
#[test]
fn healthcheck_mistakes() {
    check(
        "FROM a\nHEALTHCHECK\nHEALTHCHECK NONE x\nHEALTHCHECK CMD\nHEALTHCHECK FOO x\nHEALTHCHECK --interval=1us CMD x\nHEALTHCHECK --interval=-5s CMD x\nHEALTHCHECK --timeout=5 CMD x\nHEALTHCHECK --timeout=5d CMD x\nHEALTHCHECK --timeout=x CMD x\nHEALTHCHECK --retries=-1 CMD x\nHEALTHCHECK --retries=x CMD x\nHEALTHCHECK --retires=1 CMD x",
        expect![[r#"
        stage a
          healthcheck shell "x"
          healthcheck shell "x"
          healthcheck shell "x"
          healthcheck shell "x"
          healthcheck shell "x"
          healthcheck shell "x"
          healthcheck shell "x"
          healthcheck shell "x"
        error arguments 2:1..2:12 HEALTHCHECK requires at least one argument
        error arguments 3:1..3:19 HEALTHCHECK NONE takes no arguments
        error arguments 4:1..4:16 Missing command after HEALTHCHECK CMD
        error arguments 5:13..5:16 Unknown type "FOO" in HEALTHCHECK (try CMD)
        error flag-value 6:24..6:27 Interval "interval" cannot be less than 1ms
        error flag-value 7:24..7:27 Interval "interval" cannot be less than 1ms
        error flag-value 8:23..8:24 time: missing unit in duration "5"
        error flag-value 9:23..9:25 time: unknown unit "d" in duration "5d"
        error flag-value 10:23..10:24 time: invalid duration "x"
        error flag-value 11:23..11:25 --retries cannot be negative (-1)
        error flag-value 12:23..12:24 --retries is not a number: "x"
        error unknown-flag 13:13..13:24 unknown flag: --retires (did you mean retries?)
    "#]],
    );
}

/// F1-019, F1-126.
#[test]
fn onbuild_triggers() {
    check(
        "FROM a\nONBUILD RUN  make \\\n  all\nonbuild copy --from=x b c\nONBUILD COPY <<f /x\nbody\nf",
        expect![[r#"
        stage a
          onbuild "RUN  make   all" = run shell "make   all"
          onbuild "copy --from=x b c" = copy ["b"] -> "c" from=x
          onbuild "COPY <<f /x\nbody\nf" = copy [] -> "/x" <<f "body\n"
    "#]],
    );
}

/// F1-126.
#[test]
fn onbuild_mistakes() {
    check(
        "FROM a\nONBUILD\nONBUILD ONBUILD RUN x\nONBUILD FROM x\nonbuild maintainer y\nONBUILD RUNN x\nONBUILD COPY a\nONBUILD --x RUN y",
        expect![[r#"
        stage a
          onbuild "--x RUN y" = run shell "y"
        error arguments 2:1..2:8 ONBUILD requires at least one argument
        error onbuild 3:9..3:16 Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed
        error onbuild 4:9..4:13 FROM isn't allowed as an ONBUILD trigger
        error onbuild 5:9..5:19 MAINTAINER isn't allowed as an ONBUILD trigger
        error unknown-instruction 6:9..6:13 unknown instruction: RUNN (did you mean RUN?)
        error arguments 7:9..7:15 COPY requires at least two arguments, but only one was provided. Destination could not be determined
        error unknown-flag 8:9..8:12 unknown flag: --x
    "#]],
    );
}

/// F1-021.
#[test]
fn many_mistakes_are_reported_in_one_pass() {
    check(
        "FROM a AS 1\nCOPY x\nENV y\nRUN <<E\n",
        expect![[r#"
            stage a as 1
            error stage-name 1:11..1:12 invalid name for build stage: "1", name can't start with a number or contain symbols
            error arguments 2:1..2:7 COPY requires at least two arguments, but only one was provided. Destination could not be determined
            error syntax 3:5..3:6 ENV must have two arguments
            error unterminated-heredoc 4:5..4:8 unterminated heredoc: no line says `E`
        "#]],
    );
}

/// F1-126; D04.
#[test]
fn triggers_of_base_images_are_parsed() {
    assert!(parse_trigger("COPY <<f /x\nbody\nf").is_ok());
    assert!(parse_trigger("run make").is_ok());
    let mistakes =
        ["", "RUN a\nRUN b", "ONBUILD RUN a", "FROM a", "MAINTAINER a", "RUNN a", "COPY a", "ENV a", "RUN <<E"];
    for expression in mistakes {
        let found = parse_trigger(expression).unwrap_err();
        assert!(!found.is_empty(), "{expression}");
    }
}

#[test]
fn text_is_the_instruction_as_written() {
    let (dockerfile, _) = parse("FROM  a\nRUN b \\\n  c <<E  \nx\nE\n");
    assert_eq!(dockerfile.stages[0].text, "FROM  a");
    assert_eq!(dockerfile.stages[0].instructions[0].text, "RUN b   c <<E");
}

#[test]
fn values_of_flags_and_pairs_have_places_of_their_own() {
    let source = "FROM a\nARG b=c\nENV d=\"e f\"\nCOPY --from=g h i\n";
    let (dockerfile, _) = parse(source);
    let texts: Vec<&str> = dockerfile.stages[0]
        .instructions
        .iter()
        .flat_map(|found| match &found.kind {
            build_engine_dockerfile::InstructionKind::Arg(pairs) => vec![pairs[0].value.as_ref().unwrap().span],
            build_engine_dockerfile::InstructionKind::Env(pairs) => vec![pairs[0].key.span, pairs[0].value.span],
            build_engine_dockerfile::InstructionKind::Copy(copy) => {
                vec![copy.from.as_ref().unwrap().span, copy.dest.span]
            }
            _ => Vec::new(),
        })
        .map(|span| span.of(source))
        .collect();
    assert_eq!(texts, ["c", "d", "\"e f\"", "g", "i"]);
}

/// F1-128. Expectations from Go's `time.ParseDuration`.
#[test]
fn durations_are_go_s() {
    let cases = [
        ("0", Some(0)),
        ("5s", Some(5_000_000_000)),
        ("-5s", Some(-5_000_000_000)),
        ("+1.5h", Some(5_400_000_000_000)),
        ("1h2m3s4ms5us6ns", Some(3_723_004_005_006)),
        ("1µs1μs", Some(2_000)),
        (".5s", Some(500_000_000)),
        ("5.s", Some(5_000_000_000)),
        ("0.3333333333333333333h", Some(1_200_000_000_000 - 1)),
        ("9223372036854775807ns", Some(i64::MAX)),
        ("-9223372036854775808ns", Some(i64::MIN)),
        ("9223372036854775808ns", None),
        ("3000000h", None),
        ("", None),
        ("3", None),
        ("-", None),
        ("s", None),
        (".", None),
        ("-.s", None),
        ("1d", None),
        ("1 s", None),
    ];
    for (text, expected) in cases {
        assert_eq!(parse_duration(text).ok(), expected, "{text:?}");
    }
}

#[test]
fn suggestions_are_at_most_two_edits_away() {
    let words = ["build", "test", "release"];
    assert_eq!(suggest("biuld", words), Some("build"));
    assert_eq!(suggest("tst", words), Some("test"));
    assert_eq!(suggest("releas", words), Some("release"));
    assert_eq!(suggest("deploy", words), None);
    assert_eq!(suggest("test", words), None);
    assert_eq!(suggest("", words), None);
    assert_eq!(suggest_ignoring_case("TETS", words).as_deref(), Some("TEST"));
    assert_eq!(suggest_ignoring_case("Tets", words).as_deref(), Some("test"));
}
