//! Instructions that change the config, and the history they leave.

use expect_test::expect;

use super::{config, config_of, graph};

#[test]
fn scratch_begins_with_a_path_and_a_directory_f1_051() {
    config(
        "FROM scratch",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
            os: linux
        "#]],
    );
    graph(
        "FROM scratch",
        expect![[r#"
        linux/amd64 = empty
    "#]],
    );
}

#[test]
fn a_base_gives_its_config_and_history_but_nothing_unknown_f1_052() {
    config(
        "FROM alpine",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin"]
            Cmd: ["sh"]
            + base (inherited)
            os: linux
        "#]],
    );
}

#[test]
fn the_last_command_wins_and_shell_form_gets_the_shell_f1_120() {
    config(
        "FROM scratch\nCMD one\nCMD two 2\nENTRYPOINT [\"/x\", \"a \\\"b\\\"\"]",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            Entrypoint: ["/x","a \"b\""]
            Cmd: ["/bin/sh","-c","two 2"]
            WorkingDir: /
            ArgsEscaped: true
              CMD ["/bin/sh" "-c" "one"]
              CMD ["/bin/sh" "-c" "two 2"]
              ENTRYPOINT ["/x" "a \"b\""]
            os: linux
            warning[JSONArgsRecommended]: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
            warning[MultipleInstructionsDisallowed]: Multiple CMD instructions should not be used in the same stage because only the last one will be used
            warning[JSONArgsRecommended]: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
        "#]],
    );
}

#[test]
fn an_entry_point_resets_an_inherited_command_but_not_ones_own_f1_120() {
    config(
        "FROM alpine\nENTRYPOINT [\"/x\"]",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin"]
            Entrypoint: ["/x"]
            + base (inherited)
              ENTRYPOINT ["/x"]
            os: linux
        "#]],
    );
    config(
        "FROM alpine AS a\nCMD [\"y\"]\nFROM a\nENTRYPOINT [\"/x\"]",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin"]
            Entrypoint: ["/x"]
            ArgsEscaped: true
            + base (inherited)
              CMD ["y"]
              ENTRYPOINT ["/x"]
            os: linux
        "#]],
    );
    config(
        "FROM alpine\nCMD [\"y\"]\nENTRYPOINT /x",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin"]
            Entrypoint: ["/bin/sh","-c","/x"]
            Cmd: ["y"]
            ArgsEscaped: true
            + base (inherited)
              CMD ["y"]
              ENTRYPOINT ["/bin/sh" "-c" "/x"]
            os: linux
            warning[JSONArgsRecommended]: JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals
        "#]],
    );
}

#[test]
fn empty_lists_are_left_out_f1_120() {
    config(
        "FROM alpine\nCMD []\nENTRYPOINT []",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin"]
            ArgsEscaped: true
            + base (inherited)
              CMD []
              ENTRYPOINT []
            os: linux
        "#]],
    );
}

#[test]
fn env_keeps_its_place_in_the_config_and_is_usable_from_the_next_line_f1_121() {
    config(
        "FROM alpine\nENV A=1 B=\"x y\"\nENV A=2 C=$A\nENV D $C and more",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin","A=2","B=x y","C=1","D=1 and more"]
            Cmd: ["sh"]
            + base (inherited)
              ENV A=1 B=x y
              ENV A=2 C=1
              ENV D=1 and more
            os: linux
            warning[LegacyKeyValueFormat]: "ENV key=value" should be used instead of legacy "ENV key value" format
        "#]],
    );
}

#[test]
fn one_instruction_has_one_value_of_a_variable_f1_037() {
    config(
        "FROM scratch\nENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual","abc=bye","def=hello","ghi=bye"]
            WorkingDir: /
              ENV abc=hello
              ENV abc=bye def=hello
              ENV ghi=bye
            os: linux
        "#]],
    );
}

#[test]
fn labels_are_inherited_and_the_request_wins_f1_122() {
    config_of(
        "FROM alpine AS a\nLABEL one=1 \"two words\"=\"a b\"\nFROM a\nARG V=x\nLABEL one=$V three=3",
        |case| {
            case.request.labels.insert("three".into(), "four".into());
        },
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin"]
            Cmd: ["sh"]
            Labels: {"one":"x","three":"four","two words":"a b"}
            + base (inherited)
              LABEL one=1 two words=a b
              ARG V=x
              LABEL one=x three=3
            os: linux
        "#]],
    );
}

#[test]
fn exposed_ports_are_sorted_expanded_and_merged_f1_123() {
    config(
        "FROM scratch\nARG P=8080\nEXPOSE 9000/udp $P 80 7000-7002/TCP\nEXPOSE 127.0.0.1:1:80",
        expect![[r#"
            architecture: amd64
            ExposedPorts: {"7000/tcp":{},"7001/tcp":{},"7002/tcp":{},"80/tcp":{},"8080/tcp":{},"9000/udp":{}}
            Env: ["PATH=usual"]
            WorkingDir: /
              ARG P=8080
              EXPOSE [8080/tcp 7000/tcp 7001/tcp 7002/tcp 80/tcp 9000/udp]
              EXPOSE [80/tcp]
            os: linux
            warning[ExposeProtoCasing]: Defined protocol '7000-7002/TCP' in EXPOSE instruction should be lowercase
            warning[ExposeInvalidFormat]: EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:1:80'
        "#]],
    );
}

#[test]
fn volumes_are_words_or_json_f1_124() {
    config(
        "FROM scratch\nENV D=/data\nVOLUME /a $D\nVOLUME [\"/b c\"]",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual","D=/data"]
            Volumes: {"/a":{},"/b c":{},"/data":{}}
            WorkingDir: /
              ENV D=/data
              VOLUME [/a /data]
              VOLUME [/b c]
            os: linux
        "#]],
    );
}

#[test]
fn user_and_directory_are_kept_and_the_directory_is_made_f1_125() {
    let text = "FROM alpine\nENV D=app\nWORKDIR /srv\nUSER me:us\nWORKDIR $D/../x\nWORKDIR /";
    config(
        text,
        expect![[r#"
            architecture: amd64
            User: me:us
            Env: ["PATH=/bin","D=app"]
            Cmd: ["sh"]
            WorkingDir: /
            + base (inherited)
              ENV D=app
            + WORKDIR /srv
              USER me:us
            + WORKDIR /srv/x
              WORKDIR /
            os: linux
        "#]],
    );
    graph(
        text,
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/4] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 file @3-3 "[2/4] WORKDIR /srv"
            #0: mkdir /srv 755 parents=true -> 0
        #2 file @5-5 "[3/4] WORKDIR app/../x"
            #1: mkdir /srv/x 755 parents=true owner=me@#1:us@#1 -> 0
        linux/amd64 = #2
    "##]],
    );
}

#[test]
fn stop_signals_are_checked_and_kept_as_written_f1_127() {
    config(
        "FROM scratch\nSTOPSIGNAL SIGRTMIN+3\nSTOPSIGNAL 9\nSTOPSIGNAL term",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
            StopSignal: term
              STOPSIGNAL SIGRTMIN+3
              STOPSIGNAL 9
              STOPSIGNAL term
            os: linux
        "#]],
    );
}

#[test]
fn health_checks_are_written_as_docker_does_f1_128() {
    config(
        "FROM scratch\nHEALTHCHECK --interval=1m30s --timeout=1500ms --retries=3 CMD curl -f x",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
            Healthcheck: {"Test":["CMD-SHELL","curl -f x"],"Interval":90000000000,"Timeout":1500000000,"Retries":3}
              HEALTHCHECK {Test:[CMD-SHELL curl -f x] Interval:1m30s Timeout:1.5s StartPeriod:0s StartInterval:0s Retries:3}
            os: linux
        "#]],
    );
    config(
        "FROM scratch\nHEALTHCHECK --start-period=1h --start-interval=5s CMD [\"a\",\"b\"]\nHEALTHCHECK NONE",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
            Healthcheck: {"Test":["NONE"]}
              HEALTHCHECK {Test:[CMD a b] Interval:0s Timeout:0s StartPeriod:1h0m0s StartInterval:5s Retries:0}
              HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}
            os: linux
            warning[MultipleInstructionsDisallowed]: Multiple HEALTHCHECK instructions should not be used in the same stage because only the last one will be used
        "#]],
    );
}

#[test]
fn the_shell_applies_to_later_lines_and_to_children_f1_129() {
    config(
        "FROM scratch AS a\nSHELL [\"/bin/bash\", \"-ec\"]\nCMD one\nFROM a\nENTRYPOINT two",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            Entrypoint: ["/bin/bash","-ec","two"]
            WorkingDir: /
            ArgsEscaped: true
            Shell: ["/bin/bash","-ec"]
              SHELL [/bin/bash -ec]
              CMD ["/bin/bash" "-ec" "one"]
              ENTRYPOINT ["/bin/bash" "-ec" "two"]
            os: linux
        "#]],
    );
}

#[test]
fn maintainer_is_the_author_f1_130() {
    config(
        "FROM scratch\nMAINTAINER Jane <j@x>",
        expect![[r#"
            architecture: amd64
            author: Jane <j@x>
            Env: ["PATH=usual"]
            WorkingDir: /
              MAINTAINER Jane <j@x>
            os: linux
            warning[MaintainerDeprecated]: Maintainer instruction is deprecated in favor of using label
        "#]],
    );
}

#[test]
fn every_instruction_leaves_a_history_item_f1_131() {
    config(
        "FROM alpine\nARG A=1\nARG B\nRUN make\nCOPY --chown=1:2 --chmod=755 a b /d/\nADD x /\nWORKDIR /w\nRUN [\"ls\", \"-l\"]\nENV A=2\nRUN env",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=/bin","A=2"]
            Cmd: ["sh"]
            WorkingDir: /w
            + base (inherited)
              ARG A=1
              ARG B
            + RUN |2 A=1 B= /bin/sh -c make # buildkit
            + COPY --chown=1:2 --chmod=755 a b /d/ # buildkit
            + ADD x / # buildkit
            + WORKDIR /w
            + RUN |2 A=1 B= ls -l # buildkit
              ENV A=2
            + RUN |2 A=2 B= /bin/sh -c env # buildkit
            os: linux
        "#]],
    );
}

#[test]
fn the_epoch_is_in_the_history_and_in_new_directories_f1_045_f1_131() {
    config_of(
        "FROM alpine\nWORKDIR /w\nUSER a",
        |case| case.request.source_date_epoch = Some(1_700_000_000),
        expect![[r#"
            architecture: amd64
            User: a
            Env: ["PATH=/bin"]
            Cmd: ["sh"]
            WorkingDir: /w
            + base (inherited)
            + WORKDIR /w 2023-11-14T22:13:20Z
              USER a 2023-11-14T22:13:20Z
            os: linux
        "#]],
    );
    config(
        "ARG SOURCE_DATE_EPOCH=60\nFROM scratch\nARG SOURCE_DATE_EPOCH\nUSER a",
        expect![[r#"
            architecture: amd64
            User: a
            Env: ["PATH=usual"]
            WorkingDir: /
              ARG SOURCE_DATE_EPOCH=60 1970-01-01T00:01:00Z
              USER a 1970-01-01T00:01:00Z
            os: linux
        "#]],
    );
}

#[test]
fn the_epoch_can_be_switched_off_f1_045() {
    config_of(
        "FROM scratch\nUSER a",
        |case| case.arg("SOURCE_DATE_EPOCH", ""),
        expect![[r#"
            architecture: amd64
            User: a
            Env: ["PATH=usual"]
            WorkingDir: /
              USER a
            os: linux
        "#]],
    );
}

#[test]
fn triggers_are_stored_f1_126() {
    config(
        "FROM scratch\nONBUILD RUN make\nONBUILD COPY . /src",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
            OnBuild: ["RUN make","COPY . /src"]
            os: linux
        "#]],
    );
}
