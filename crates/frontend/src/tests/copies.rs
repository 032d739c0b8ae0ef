//! `COPY` and `ADD`.

use expect_test::expect;

use super::{config, graph, graph_of};

#[test]
fn a_copy_follows_the_paths_it_uses_f1_090() {
    graph(
        "FROM alpine\nWORKDIR /w\nCOPY a ../b ./sub/ d/\nCOPY [\"with space\", \"/x\"]",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/4] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 file @2-2 "[2/4] WORKDIR /w"
            #0: mkdir /w 755 parents=true -> 0
        #2 source local://context "[internal] load build context"
            local.followpaths = ["a","b","sub","with space"]
            local.sharedkeyhint = context
        #3 file @3-3 "[3/4] COPY a ../b ./sub/ d/"
            #1: copy #2/a /w/d/ follow contents create wildcard empty-wildcard
            ^0: copy #2/b /w/d/ follow contents create wildcard empty-wildcard
            ^1: copy #2/sub /w/d/ follow contents create wildcard empty-wildcard -> 0
        #4 file @4-4 "[4/4] COPY [with space, /x]"
            #3: copy #2/with space /x follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #4
    "##]],
    );
}

#[test]
fn the_whole_context_is_used_without_a_list_of_paths_f1_091() {
    graph(
        "FROM scratch\nCOPY a /\nCOPY . .",
        expect![[r##"
        #0 source local://context "[internal] load build context"
            local.sharedkeyhint = context
        #1 file @2-2 "[1/2] COPY a /"
            -: copy #0/a / follow contents create wildcard empty-wildcard -> 0
        #2 file @3-3 "[2/2] COPY . ."
            #1: copy #0/ / follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #2
    "##]],
    );
}

#[test]
fn destinations_are_relative_to_the_directory_and_keep_their_slash_f1_091() {
    graph(
        "FROM scratch\nWORKDIR /w\nCOPY a .\nCOPY a b/\nCOPY a /c/../d/\nCOPY /../e ./f",
        expect![[r##"
        #0 file @2-2 "[1/5] WORKDIR /w"
            -: mkdir /w 755 parents=true -> 0
        #1 source local://context "[internal] load build context"
            local.followpaths = ["a","e"]
            local.sharedkeyhint = context
        #2 file @3-3 "[2/5] COPY a ."
            #0: copy #1/a /w/ follow contents create wildcard empty-wildcard -> 0
        #3 file @4-4 "[3/5] COPY a b/"
            #2: copy #1/a /w/b/ follow contents create wildcard empty-wildcard -> 0
        #4 file @5-5 "[4/5] COPY a /c/../d/"
            #3: copy #1/a /d/ follow contents create wildcard empty-wildcard -> 0
        #5 file @6-6 "[5/5] COPY /../e ./f"
            #4: copy #1/e /w/f follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #5
    "##]],
    );
}

#[test]
fn add_unpacks_and_copy_does_not_f1_101_f1_102() {
    graph(
        "FROM scratch\nADD a.tar /\nADD --unpack=false b.tar /\nCOPY c.tar /",
        expect![[r##"
        #0 source local://context "[internal] load build context"
            local.followpaths = ["a.tar","b.tar","c.tar"]
            local.sharedkeyhint = context
        #1 file @2-2 "[1/3] ADD a.tar /"
            -: copy #0/a.tar / follow contents unpack create wildcard empty-wildcard -> 0
        #2 file @3-3 "[2/3] ADD --unpack=false b.tar /"
            #1: copy #0/b.tar / follow contents create wildcard empty-wildcard -> 0
        #3 file @4-4 "[3/3] COPY c.tar /"
            #2: copy #0/c.tar / follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #3
    "##]],
    );
}

#[test]
fn owners_are_numbers_or_names_of_the_image_f1_095() {
    graph(
        "FROM alpine\nCOPY --chown=1000 a /\nCOPY --chown=me:us a /\nCOPY --chown=root:5 a /\nADD --chown=:us a /",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/5] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 source local://context "[internal] load build context"
            local.followpaths = ["a"]
            local.sharedkeyhint = context
        #2 file @2-2 "[2/5] COPY --chown=1000 a /"
            #0: copy #1/a / owner=1000:- follow contents create wildcard empty-wildcard -> 0
        #3 file @3-3 "[3/5] COPY --chown=me:us a /"
            #2: copy #1/a / owner=me@#2:us@#2 follow contents create wildcard empty-wildcard -> 0
        #4 file @4-4 "[4/5] COPY --chown=root:5 a /"
            #3: copy #1/a / owner=0:5 follow contents create wildcard empty-wildcard -> 0
        #5 file @5-5 "[5/5] ADD --chown=:us a /"
            #4: copy #1/a / owner=0:us@#4 follow contents unpack create wildcard empty-wildcard -> 0
        linux/amd64 = #5
    "##]],
    );
    graph(
        "FROM scratch\nCOPY --chown=me a /",
        expect![[r##"
        #0 source local://context "[internal] load build context"
            local.followpaths = ["a"]
            local.sharedkeyhint = context
        #1 file @2-2 "[1/1] COPY --chown=me a /"
            -: copy #0/a / owner=me@-:- follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn modes_are_octal_or_symbolic_f1_096_f1_097() {
    graph(
        "FROM scratch\nCOPY --chmod=0755 a /\nCOPY --chmod=u=rwX,go=rX a /",
        expect![[r##"
        #0 source local://context "[internal] load build context"
            local.followpaths = ["a"]
            local.sharedkeyhint = context
        #1 file @2-2 "[1/2] COPY --chmod=0755 a /"
            -: copy #0/a / mode=755 follow contents create wildcard empty-wildcard -> 0
        #2 file @3-3 "[2/2] COPY --chmod=u=rwX,go=rX a /"
            #1: copy #0/a / mode="u=rwX,go=rX" follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #2
    "##]],
    );
}

#[test]
fn a_linked_copy_is_made_on_nothing_and_merged_f1_098() {
    graph(
        "FROM alpine\nRUN x\nCOPY --link a b /d/",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/3] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[2/3] RUN x"
            bind / <- #0 -> 0
        #2 source local://context "[internal] load build context"
            local.followpaths = ["a","b"]
            local.sharedkeyhint = context
        #3 file @3-3 group="link 0.3" "[3/3] COPY --link a b /d/"
            -: copy #2/a /d/ follow contents create wildcard empty-wildcard
            ^0: copy #2/b /d/ follow contents create wildcard empty-wildcard -> 0
        #4 merge #1 #3 @3-3 group="link 0.3" "[3/3] LINK COPY --link a b /d/"
        linux/amd64 = #4
    "##]],
    );
    graph(
        "FROM scratch\nCOPY --link a /\nCOPY --link --chown=me b /",
        expect![[r##"
        #0 source local://context "[internal] load build context"
            local.followpaths = ["a","b"]
            local.sharedkeyhint = context
        #1 file @2-2 group="link 0.1" "[1/2] COPY --link a /"
            -: copy #0/a / follow contents create wildcard empty-wildcard -> 0
        #2 file @3-3 group="link 0.2" "[2/2] COPY --link --chown=me b /"
            -: copy #0/b / owner=me@-:- follow contents create wildcard empty-wildcard -> 0
        #3 merge #1 #2 @3-3 group="link 0.2" "[2/2] LINK COPY --link --chown=me b /"
        linux/amd64 = #3
    "##]],
    );
}

#[test]
fn a_linked_copy_with_a_mode_is_an_ordinary_one_as_in_buildkit_f1_098() {
    graph(
        "FROM alpine\nCOPY --link --chmod=755 a /",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 source local://context "[internal] load build context"
            local.followpaths = ["a"]
            local.sharedkeyhint = context
        #2 file @2-2 "[2/2] COPY --link --chmod=755 a /"
            #0: copy #1/a / mode=755 follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #2
    "##]],
    );
}

#[test]
fn parents_are_kept_from_the_pivot_on_f1_099() {
    graph(
        "FROM scratch\nCOPY --parents a/b.c x/./y/z d/**/*.go /dest/",
        expect![[r##"
        #0 source local://context "[internal] load build context"
            local.followpaths = ["a/b.c","d/**/*.go","x/y/z"]
            local.sharedkeyhint = context
        #1 file @2-2 "[1/1] COPY --parents a/b.c x/./y/z d/**/*.go /dest/"
            -: copy #0/ /dest/ follow contents create wildcard empty-wildcard include=["a/b.c"] required=["/a/b.c"]
            ^0: copy #0/x /dest/ follow contents create wildcard empty-wildcard include=["y/z"] required=["/x/y/z"]
            ^1: copy #0/ /dest/ follow contents create wildcard empty-wildcard include=["d/**/*.go"] -> 0
        linux/amd64 = #1
    "##]],
    );
    config(
        "FROM scratch\nCOPY --parents a/b /dest/",
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual"]
            WorkingDir: /
            + COPY --parents a/b /dest/ # buildkit
            os: linux
        "#]],
    );
}

#[test]
fn excluded_patterns_are_passed_on_f1_100() {
    graph(
        "FROM scratch\nCOPY --exclude=*.md --exclude=t/** . /",
        expect![[r##"
        #0 source local://context "[internal] load build context"
            local.sharedkeyhint = context
        #1 file @2-2 "[1/1] COPY --exclude=*.md --exclude=t/** . /"
            -: copy #0/ / follow contents create wildcard empty-wildcard exclude=["*.md", "t/**"] -> 0
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn files_given_inline_are_made_and_copied_f1_090() {
    let text = "FROM scratch\nENV V=val\nCOPY <<one <<-\"two\" a /d/\nx $V \"q\"\none\n\ty $V\n\ttwo\n";
    graph(
        text,
        expect![[r##"
        #0 source local://context "[internal] load build context"
            local.followpaths = ["a"]
            local.sharedkeyhint = context
        #1 file @3-7 "[internal] preparing inline document"
            -: mkfile /one 644 "x val \"q\"\n" -> 0
        #2 file @3-7 "[internal] preparing inline document"
            -: mkfile /two 644 "y $V\n" -> 0
        #3 file @3-7 "[1/1] COPY <<one <<-two a /d/"
            -: copy #0/a /d/ follow contents create wildcard empty-wildcard
            ^0: copy #1/one /d/ create
            ^1: copy #2/two /d/ create -> 0
        linux/amd64 = #3
    "##]],
    );
    config(
        text,
        expect![[r#"
            architecture: amd64
            Env: ["PATH=usual","V=val"]
            WorkingDir: /
              ENV V=val
            + COPY a <<one <<two /d/ # buildkit
            os: linux
        "#]],
    );
}

#[test]
fn add_fetches_urls_f1_103_f1_105() {
    graph(
        "FROM scratch\nADD --checksum=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa https://example.com/a%20b.tgz?x=1 /d/\nADD --unpack=true http://example.com/ /e",
        expect![[r##"
            #0 source https://example.com/a%20b.tgz?x=1 @2-2 "[1/2] ADD --checksum=sha256:aaaaaaa https://example.com/a%20b.tgz?x=1 /d/"
                http.checksum = sha256:aaaaaaa
                http.filename = a b.tgz
            #1 file @2-2 "[1/2] ADD --checksum=sha256:aaaaaaa https://example.com/a%20b.tgz?x=1 /d/"
                -: copy #0/a b.tgz /d/ create -> 0
            #2 source http://example.com/ @3-3 "[2/2] ADD --unpack=true http://example.com/ /e"
                http.filename = __unnamed__
            #3 file @3-3 "[2/2] ADD --unpack=true http://example.com/ /e"
                #1: copy #2/__unnamed__ /e unpack create -> 0
            linux/amd64 = #3
        "##]],
    );
}

#[test]
fn add_fetches_repositories_f1_106_f1_107() {
    graph(
        "FROM scratch\nADD --keep-git-dir=true https://example.com/r.git#main:sub /r\nADD git@example.com:o/r.git?branch=b&submodules=false /s\nADD --checksum=abc https://example.com/r.git /t",
        expect![[r##"
            #0 source git://example.com/r.git#main:sub @2-2 "[1/3] ADD --keep-git-dir=true https://example.com/r.git#main:sub /r"
                git.authheadersecret = GIT_AUTH_HEADER
                git.authtokensecret = GIT_AUTH_TOKEN
                git.fullurl = https://example.com/r.git
                git.keepgitdir = true
            #1 file @2-2 "[1/3] ADD --keep-git-dir=true https://example.com/r.git#main:sub /r"
                -: copy #0/ /r create -> 0
            #2 source git://example.com/o/r.git#refs/heads/b @3-3 "[2/3] ADD git@example.com:o/r.git?branch=b&submodules=false /s"
                git.authheadersecret = GIT_AUTH_HEADER
                git.authtokensecret = GIT_AUTH_TOKEN
                git.fullurl = git@example.com:o/r.git
                git.mountsshsock = default
                git.skipsubmodules = true
            #3 file @3-3 "[2/3] ADD git@example.com:o/r.git?branch=b&submodules=false /s"
                #1: copy #2/ /s create -> 0
            #4 source git://example.com/r.git @4-4 "[3/3] ADD --checksum=abc https://example.com/r.git /t"
                git.authheadersecret = GIT_AUTH_HEADER
                git.authtokensecret = GIT_AUTH_TOKEN
                git.checksum = abc
                git.fullurl = https://example.com/r.git
            #5 file @4-4 "[3/3] ADD --checksum=abc https://example.com/r.git /t"
                #3: copy #4/ /t create -> 0
            linux/amd64 = #5
        "##]],
    );
}

#[test]
fn equal_steps_of_two_stages_are_one_vertex() {
    graph(
        "FROM alpine AS a\nRUN x\nFROM alpine AS b\nRUN x\nFROM scratch\nCOPY --from=a /1 /\nCOPY --from=b /2 /",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[a 1/2] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 exec ["/bin/sh", "-c", "x"] linux/amd64 @2-2 "[a 2/2] RUN x"
            bind / <- #0 -> 0
        #2 file @6-6 "[stage-2 1/2] COPY --from=a /1 /"
            -: copy #1/1 / follow contents create wildcard empty-wildcard -> 0
        #3 file @7-7 "[stage-2 2/2] COPY --from=b /2 /"
            #2: copy #1/2 / follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #3
    "##]],
    );
}

#[test]
fn a_copy_from_the_same_tree_has_one_input() {
    graph(
        "FROM alpine AS a\nFROM a\nCOPY --from=a --chown=me /1 /2 /d/",
        expect![[r##"
        #0 source docker-image://docker.io/library/alpine:latest@sha256:bc22a0d linux/amd64 @1-1 "[a 1/1] FROM docker.io/library/alpine:latest@sha256:bc22a0d"
        #1 file @3-3 "[stage-1 1/1] COPY --from=a --chown=me /1 /2 /d/"
            #0: copy #0/1 /d/ owner=me@#0:- follow contents create wildcard empty-wildcard
            ^0: copy #0/2 /d/ owner=me@#0:- follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #1
    "##]],
    );
}

#[test]
fn a_copy_of_an_empty_stage_has_no_input() {
    graph_of(
        "FROM scratch AS a\nFROM scratch\nCOPY --from=a / /",
        |_| {},
        expect![[r##"
        #0 file @3-3 "[stage-1 1/1] COPY --from=a / /"
            -: copy -/ / follow contents create wildcard empty-wildcard -> 0
        linux/amd64 = #0
    "##]],
    );
}
