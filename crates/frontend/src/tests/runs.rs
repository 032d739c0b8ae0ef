//! `RUN` and its mounts.

use build_engine_graph::{Network, Ulimit};
use expect_test::expect;

use super::{config, graph, graph_of};

#[test]
fn a_run_sees_user_directory_and_environment_f1_081() {
    graph(
        "FROM scratch\nENV A=1\nWORKDIR /w\nUSER u:g\nRUN one && \\\n  two\nRUN [\"/x\", \"$A\"]",
        expect![[r##"
        #0 file @3-3 "[1/3] WORKDIR /w"
            -: mkdir /w 755 parents=true -> 0
        #1 exec ["/bin/sh", "-c", "one &&   two"] linux/amd64 @5-6 "[2/3] RUN one &&   two"
            env=["A=1"] cwd=/w user=u:g
            bind / <- #0 -> 0
        #2 exec ["/x", "$A"] linux/amd64 @7-7 "[3/3] RUN [\"/x\", \"1\"]"
            env=["A=1"] cwd=/w user=u:g
            bind / <- #1 -> 0
        linux/amd64 = #2
    "##]],
    );
}

#[test]
fn variables_are_shown_in_names_but_quotes_stay() {
    graph(
        "FROM scratch\nENV A=1\nARG B=2\nRUN echo \"$A\" '$B' $UNSET ${B}",
        expect![[r##"
        #0 exec ["/bin/sh", "-c", "echo \"$A\" '$B' $UNSET ${B}"] linux/amd64 @4-4 "[1/1] RUN echo \"1\" '$B' $UNSET 2"
            env=["A=1", "B=2"]
            bind / <- - -> 0
        linux/amd64 = #0
    "##]],
    );
}

#[test]
fn the_shell_of_the_image_is_used_f1_129() {
    graph(
        "FROM scratch\nSHELL [\"/bin/bash\", \"-c\"]\nRUN a",
        expect![[r##"
        #0 exec ["/bin/bash", "-c", "a"] linux/amd64 @3-3 "[1/1] RUN a"
            bind / <- - -> 0
        linux/amd64 = #0
    "##]],
    );
}

#[test]
fn a_heredoc_is_a_script_f1_090() {
    let text = "FROM scratch\nRUN <<EOF\necho $A\necho 2\nEOF\n";
    graph(
        text,
        expect![[r##"
        #0 exec ["/bin/sh", "-c", "echo $A\necho 2\n"] linux/amd64 @2-5 "[1/1] RUN <<EOF (echo $A...)"
            bind / <- - -> 0
        linux/amd64 = #0
    "##]],
    );
    config(
        text,
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
            + RUN /bin/sh -c echo $A
            echo 2
             # buildkit
            os: linux
        "#]],
    );
}

#[test]
fn tabs_of_a_heredoc_are_stripped_where_asked_for() {
    graph(
        "FROM scratch\nRUN <<-EOF\n\techo 1\n\tEOF\n",
        expect![[r##"
        #0 exec ["/bin/sh", "-c", "echo 1\n"] linux/amd64 @2-4 "[1/1] RUN <<-EOF (echo 1)"
            bind / <- - -> 0
        linux/amd64 = #0
    "##]],
    );
}

#[test]
fn a_heredoc_with_an_interpreter_is_mounted() {
    graph(
        "FROM scratch\nRUN <<\"EOF\"\n#!/usr/bin/python3\nprint(1)\nEOF\n",
        expect![[r##"
        #0 file @2-5 "[internal] preparing inline document"
            -: mkfile /EOF 755 "#!/usr/bin/python3\nprint(1)\n" -> 0
        #1 exec ["/bin/sh", "-c", "/dev/pipes/EOF"] linux/amd64 @2-5 "[1/1] RUN <<\"EOF\" (#!/usr/bin/python3...)"
            bind / <- - -> 0
            bind /dev/pipes/ <- #0 [/] ro
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn a_heredoc_that_is_input_is_left_to_the_shell() {
    graph(
        "FROM scratch\nRUN cat <<EOF > /a && cat <<-X\n1\nEOF\n\t2\nX\n",
        expect![[r##"
        #0 exec ["/bin/sh", "-c", "cat <<EOF > /a && cat <<-X\n1\nEOF\n\t2\nX"] linux/amd64 @2-6 "[1/1] RUN cat <<EOF > /a && cat <<-X"
            bind / <- - -> 0
        linux/amd64 = #0
    "##]],
    );
}

#[test]
fn bind_mounts_are_read_only_and_follow_their_paths_f1_070() {
    graph(
        "FROM alpine AS src\nFROM alpine\nWORKDIR /w\nRUN --mount=target=/c --mount=type=bind,from=src,source=/a,target=b,rw x\nRUN --mount=from=busybox,dst=/bb,src=bin y",
        expect![[r##"
            #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @2-2 "[stage-1 1/4] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
            #1 file @3-3 "[stage-1 2/4] WORKDIR /w"
                #0: mkdir /w 755 parents=true -> 0
            #2 source local://context "[internal] load build context"
                local.sharedkeyhint = context
            #3 exec ["/bin/sh", "-c", "x"] linux/amd64 @4-4 "[stage-1 3/4] RUN --mount=target=/c --mount=type=bind,from=src,source=/a,target=b,rw x"
                cwd=/w
                bind / <- #1 -> 0
                bind /c <- #2 ro
                bind /w/b <- #0 [/a]
            #4 source docker-image://docker.io/library/busybox:latest@sha256:f372f3b linux/amd64 @5-5 "FROM docker.io/library/busybox:latest@sha256:f372f3b"
            #5 exec ["/bin/sh", "-c", "y"] linux/amd64 @5-5 "[stage-1 4/4] RUN --mount=from=busybox,dst=/bb,src=bin y"
                cwd=/w
                bind / <- #3 -> 0
                bind /bb <- #4 [/bin] ro
            linux/amd64 = #5
        "##]],
    );
    graph(
        "FROM alpine\nRUN --mount=source=go.mod,target=go.mod x",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[stage-0 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 source local://context "[internal] load build context"
            local.followpaths = ["go.mod"]
            local.sharedkeyhint = context
        #2 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[stage-0 2/2] RUN --mount=source=go.mod,target=go.mod x"
            bind / <- #0 -> 0
            bind /go.mod <- #1 [/go.mod] ro
        linux/amd64 = #2
    "##]],
    );
}

#[test]
fn cache_mounts_have_ids_sharing_and_owners_f1_071() {
    graph(
        "FROM alpine AS seed\nFROM alpine\nRUN --mount=type=cache,target=/root/.cache/ x\nRUN --mount=type=cache,id=apt,sharing=locked,target=/a --mount=type=cache,target=/b,uid=5,mode=0700,ro y\nRUN --mount=type=cache,target=/s,from=seed,source=/etc,sharing=private z",
        expect![[r##"
            #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @2-2 "[stage-1 1/4] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
            #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @3-3 "[stage-1 2/4] RUN --mount=type=cache,target=/root/.cache/ x"
                bind / <- #0 -> 0
                cache //root/.cache /root/.cache/ <- -
            #2 file @4-4 "[internal] setting cache mount permissions"
                -: mkdir /cache 700 parents=false owner=5:0 -> 0
            #3 exec ["/bin/sh", "-c", "y"] linux/amd64 @4-4 "[stage-1 3/4] RUN --mount=type=cache,id=apt,sharing=locked,target=/a --mount=type=cache,target=/b,uid=5,mode=0700,ro y"
                bind / <- #1 -> 0
                cache /apt Locked /a <- -
                cache //b /b <- #2 [/cache] ro
            #4 exec ["/bin/sh", "-c", "z"] linux/amd64 @5-5 "[stage-1 4/4] RUN --mount=type=cache,target=/s,from=seed,source=/etc,sharing=private z"
                bind / <- #3 -> 0
                cache //s Private /s <- #0 [/etc]
            linux/amd64 = #4
        "##]],
    );
}

#[test]
fn tmpfs_mounts_have_a_size_f1_072() {
    graph(
        "FROM alpine\nRUN --mount=type=tmpfs,target=/t,size=64m x",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[stage-0 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[stage-0 2/2] RUN --mount=type=tmpfs,target=/t,size=64m x"
            bind / <- #0 -> 0
            tmpfs 67108864 /t <- -
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn secrets_are_files_or_variables_f1_073() {
    graph(
        "FROM alpine\nRUN --mount=type=secret,id=a --mount=type=secret,target=/s/b,required,mode=0440,uid=1 --mount=type=secret,id=c,env=TOKEN --mount=type=secret,id=d,env=D,target=/d echo $TOKEN",
        expect![[r##"
            #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[stage-0 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
            #1 exec ["/bin/sh", "-c", "echo $TOKEN"] linux/amd64 @2-2 "[stage-0 2/2] RUN --mount=type=secret,id=a --mount=type=secret,target=/s/b,required,mode=0440,uid=1 --mount=type=secret,id=c,env=TOKEN --mount=type=secret,id=d,env=D,target=/d echo ****"
                secret-env=TOKEN:c:optional=true secret-env=D:d:optional=true
                bind / <- #0 -> 0
                secret a 0:0 400 optional=true /run/secrets/a <- -
                secret b 1:0 440 optional=false /s/b <- -
                secret d 0:0 400 optional=true /d <- -
            linux/amd64 = #1
        "##]],
    );
}

#[test]
fn ssh_sockets_are_numbered_f1_074() {
    graph(
        "FROM alpine\nRUN --mount=type=ssh --mount=type=ssh,id=x,required=true,target=/sock,gid=3 y",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[stage-0 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "y"] linux/amd64 @2-2 "[stage-0 2/2] RUN --mount=type=ssh --mount=type=ssh,id=x,required=true,target=/sock,gid=3 y"
            env=["SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0"]
            bind / <- #0 -> 0
            ssh "" 0:0 600 optional=true /run/buildkit/ssh_agent.0 <- -
            ssh "x" 0:3 600 optional=false /sock <- -
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn options_of_mounts_are_expanded_f1_075() {
    graph(
        "FROM alpine\nARG D=/d I=id S=1k\nRUN --mount=type=cache,target=$D/c,id=$I --mount=type=tmpfs,target=/t,size=${S} x",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[stage-0 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @3-3 "[stage-0 2/2] RUN --mount=type=cache,target=/d/c,id=id --mount=type=tmpfs,target=/t,size=1k x"
            env=["D=/d", "I=id", "S=1k"]
            bind / <- #0 -> 0
            cache /id /d/c <- -
            tmpfs 1024 /t <- -
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn networks_and_security_are_chosen_per_run_f1_078_f1_079() {
    graph_of(
        "FROM alpine\nRUN a\nRUN --network=none b\nRUN --network=default c\nRUN --security=insecure d",
        |case| case.request.network = Network::Host,
        expect![[r##"
            #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/5] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
            #1 exec ["/bin/sh", "-c", "a"] linux/amd64 @2-2 "[2/5] RUN a"
                network=Host
                bind / <- #0 -> 0
            #2 exec ["/bin/sh", "-c", "b"] linux/amd64 @3-3 "[3/5] RUN --network=none b"
                network=None
                bind / <- #1 -> 0
            #3 exec ["/bin/sh", "-c", "c"] linux/amd64 @4-4 "[4/5] RUN --network=default c"
                network=Host
                bind / <- #2 -> 0
            #4 exec ["/bin/sh", "-c", "d"] linux/amd64 @5-5 "[5/5] RUN --security=insecure d"
                network=Host security=Insecure
                bind / <- #3 -> 0
            linux/amd64 = #4
        "##]],
    );
}

#[test]
fn settings_of_the_request_reach_every_run_f1_082() {
    graph_of(
        "FROM alpine\nRUN a",
        |case| {
            let request = &mut case.request;
            request.extra_hosts = vec![("h".into(), "10.0.0.1".into())];
            request.ulimits = vec![Ulimit { name: "nofile".into(), soft: 1, hard: 2 }];
            request.shm_size_bytes = 1 << 20;
            request.cgroup_parent = "/cg".into();
            request.hostname = "host".into();
        },
        expect![[r##"
            #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
            #1 exec ["/bin/sh", "-c", "a"] linux/amd64 @2-2 "[2/2] RUN a"
                hostname=host cgroup=/cg host=h:10.0.0.1 ulimit=nofile=1:2
                bind / <- #0 -> 0
                tmpfs 1048576 /dev/shm <- -
            linux/amd64 = #1
        "##]],
    );
}
