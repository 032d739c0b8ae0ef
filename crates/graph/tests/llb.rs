//! The wire format: bytes known from another implementation, round trips, and bytes that make no sense.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use build_engine_graph::llb::{
    DecodeError, InvalidOp, decode_definition, definition_json, encode_definition, encode_op,
};
use build_engine_graph::*;
use build_engine_oci::{Digest, Platform};
use expect_test::{Expect, expect, expect_file};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn source(identifier: &str) -> Op {
    Op::Source(SourceOp { identifier: identifier.into(), attrs: BTreeMap::new() })
}

fn vertex(op: Op, inputs: &[&Arc<Vertex>]) -> Arc<Vertex> {
    Vertex::new(op, inputs.iter().map(|vertex| vertex.output()).collect(), None, Metadata::default())
}

fn base() -> Arc<Vertex> {
    vertex(source("docker-image://docker.io/library/alpine:3.20"), &[])
}

fn mount(dest: &str, kind: MountKind) -> Mount {
    Mount {
        input: None,
        selector: String::new(),
        dest: dest.into(),
        output: None,
        readonly: false,
        kind,
        content_cache: ContentCache::Default,
    }
}

fn root() -> Mount {
    Mount { input: Some(0), output: Some(0), ..mount("/", MountKind::Bind) }
}

fn exec(mounts: Vec<Mount>) -> ExecOp {
    let meta = ExecMeta {
        args: vec!["/bin/sh".into(), "-c".into(), "make".into()],
        env: vec!["PATH=/bin".into(), "B=".into()],
        cwd: "/".into(),
        remove_mount_stubs_recursive: true,
        ..ExecMeta::default()
    };
    ExecOp {
        meta,
        mounts,
        network: Network::Default,
        security: Security::Sandbox,
        secret_env: Vec::new(),
        devices: Vec::new(),
    }
}

fn session(id: &str) -> FileFromSession {
    FileFromSession { id: id.into(), uid: 0, gid: 1000, mode: 0o400, optional: true }
}

/// One of everything, with every field set to something.
fn full_exec() -> Op {
    let mut exec = exec(vec![
        root(),
        Mount {
            input: Some(1),
            selector: "/src".into(),
            readonly: true,
            content_cache: ContentCache::On,
            ..mount("/in", MountKind::Bind)
        },
        mount("/cache", MountKind::Cache { id: "go".into(), sharing: CacheSharing::Locked }),
        mount("/tmp", MountKind::Tmpfs { size: 1 << 20 }),
        mount("/shm", MountKind::Tmpfs { size: 0 }),
        mount("/run/secrets/a", MountKind::Secret(session("a"))),
        mount("/run/ssh", MountKind::Ssh(session("default"))),
    ]);
    exec.meta.user = "1000:1000".into();
    exec.meta.proxy_env = Some(ProxyEnv { http: "http://proxy".into(), no: "localhost".into(), ..ProxyEnv::default() });
    exec.meta.extra_hosts = vec![("db".into(), "10.0.0.2".into())];
    exec.meta.hostname = "builder".into();
    exec.meta.ulimits = vec![Ulimit { name: "nofile".into(), soft: 1024, hard: -1 }];
    exec.meta.cgroup_parent = "builds".into();
    exec.meta.valid_exit_codes = vec![0, 3, 300];
    exec.network = Network::None;
    exec.security = Security::Insecure;
    exec.secret_env = vec![SecretEnv { id: "token".into(), name: "TOKEN".into(), optional: true }];
    exec.devices = vec![Device { name: "vendor.com/gpu=0".into(), optional: false }];
    Op::Exec(exec)
}

fn full_file() -> Op {
    let owner = Owner { user: Some(UserRef::Name { name: "app".into(), input: Some(0) }), group: Some(UserRef::Id(0)) };
    let copy = FileCopy {
        src: "/a*".into(),
        dest: "/b/".into(),
        owner: Some(owner.clone()),
        mode: Some(0o644),
        follow_symlink: true,
        dir_copy_contents: true,
        attempt_unpack: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        timestamp: Some(0),
        include_patterns: vec!["*.rs".into()],
        exclude_patterns: vec!["target".into(), String::new()],
        always_replace_existing_dest_paths: true,
        required_paths: vec!["/a1".into()],
        mode_str: String::new(),
    };
    let plain = FileCopy { src: "/".into(), dest: "/".into(), ..FileCopy::default() };
    let symbolic = FileCopy { mode_str: "u+x".into(), ..plain.clone() };
    let action = |input, secondary_input, output, kind| FileAction { input, secondary_input, output, kind };
    Op::File(FileOp {
        actions: vec![
            action(Some(0), Some(1), None, FileActionKind::Copy(copy)),
            action(Some(2), Some(1), None, FileActionKind::Copy(plain)),
            action(Some(3), Some(1), None, FileActionKind::Copy(symbolic)),
            action(
                Some(4),
                None,
                None,
                FileActionKind::Mkfile {
                    path: "/f".into(),
                    mode: 0o600,
                    data: vec![0, 255],
                    owner: Some(Owner { user: Some(UserRef::Name { name: "x".into(), input: None }), group: None }),
                    timestamp: Some(1_700_000_000_000_000_000),
                },
            ),
            action(
                Some(5),
                None,
                None,
                FileActionKind::Mkdir {
                    path: "/d".into(),
                    mode: 0o755,
                    make_parents: true,
                    owner: None,
                    timestamp: None,
                },
            ),
            action(
                Some(6),
                None,
                None,
                FileActionKind::Rm { path: "/x".into(), allow_not_found: true, allow_wildcard: true },
            ),
            action(
                Some(7),
                None,
                Some(0),
                FileActionKind::Symlink { old_path: "/t".into(), new_path: "/l".into(), owner: None, timestamp: None },
            ),
        ],
    })
}

fn full_graph() -> Edge {
    let platform: Platform = "linux/arm/v7".parse().unwrap();
    let attrs = BTreeMap::from([("local.followpaths".into(), "[\"a\"]".into()), ("empty".into(), String::new())]);
    let file = Arc::new(SourceFile { name: "Dockerfile".into(), text: "FROM a\nRUN b \\\n  c\n".into() });
    let span = |bytes, start_line, end_line| SourceSpan { file: Arc::clone(&file), bytes, start_line, end_line };
    let context = Vertex::new(
        Op::Source(SourceOp { identifier: "local://context".into(), attrs }),
        vec![],
        None,
        Metadata { name: "[internal] load build context".into(), ignore_cache: true, ..Metadata::default() },
    );
    let run = Vertex::new(
        full_exec(),
        vec![base().output(), context.output()],
        Some(Platform { os_version: Some("1".into()), os_features: vec!["f".into()], ..platform }),
        Metadata {
            name: "RUN b".into(),
            description: BTreeMap::from([("com.docker.dockerfile.v1.command".into(), "RUN b".into())]),
            ignore_cache: false,
            progress_group: Some(ProgressGroup { id: "1".into(), name: "group".into(), weak: true }),
            spans: vec![span(7..18, 2, 3), span(0..6, 1, 1)],
        },
    );
    let files = vertex(full_file(), &[&run, &context]);
    let diff = vertex(Op::Diff(DiffOp { lower: None, upper: Some(0) }), &[&files]);
    let merge = vertex(Op::Merge(MergeOp { inputs: vec![Some(0), Some(1)] }), &[&run, &diff]);
    let build = BuildOp {
        builder: -1,
        inputs: BTreeMap::from([("buildkit.llb.definition".into(), 0)]),
        definition: encode_definition(&[base().output()]),
        attrs: BTreeMap::from([("a".into(), "b".into())]),
    };
    Edge { vertex: vertex(Op::Build(build), &[&merge]), output: 3 }
}

type Flat = (Op, Vec<(Digest, usize)>, Option<Platform>, Metadata, Digest);

fn flat(edges: &[Edge]) -> Vec<Flat> {
    let mut all = Vec::new();
    walk(edges, |vertex| {
        let inputs = vertex.inputs().iter().map(|edge| (edge.vertex.digest().clone(), edge.output)).collect();
        let (op, platform) = (vertex.op().clone(), vertex.platform().cloned());
        all.push((op, inputs, platform, vertex.metadata().clone(), vertex.digest().clone()));
    });
    all
}

#[test]
fn everything_survives_a_round_trip() {
    let edges = [full_graph(), base().output()];
    let bytes = encode_definition(&edges);
    let decoded = decode_definition(&bytes).unwrap();
    assert_eq!(decoded, edges);
    for (ours, theirs) in flat(&edges).iter().zip(&flat(&decoded)) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(encode_definition(&decoded), bytes);
}

#[test]
fn the_empty_image_is_the_empty_definition() {
    assert_eq!(encode_definition(&[]), Vec::<u8>::new());
    assert_eq!(decode_definition(&[]).unwrap(), []);
}

#[test]
fn a_definition_of_any_depth_is_decoded_and_dropped() {
    let mut top = base();
    for _ in 0..20_000 {
        top = vertex(Op::Merge(MergeOp { inputs: vec![Some(0)] }), &[&top]);
    }
    let decoded = decode_definition(&encode_definition(&[top.output()])).unwrap();
    assert_eq!(decoded, [top.output()]);
}

fn check(op: &Op, inputs: &[&Arc<Vertex>], platform: Option<&str>, expected: &Expect) {
    let inputs: Vec<Edge> = inputs.iter().map(|vertex| vertex.output()).collect();
    let platform: Option<Platform> = platform.map(|platform| platform.parse().unwrap());
    expected.assert_eq(&hex(&encode_op(op, &inputs, platform.as_ref())));
}

/// Expected bytes: protobuf for Python (deterministic serialisation) with BuildKit's `ops.proto`, filled as the Go client does.
/// They end with the empty worker constraints, `5a00`.
#[test]
fn small_operations_have_the_bytes_that_buildkit_gives_them() {
    let attrs = BTreeMap::from([("b".into(), String::new()), ("a".into(), "1".into())]);
    check(
        &Op::Source(SourceOp { identifier: "local://c".into(), attrs }),
        &[],
        Some("linux/amd64"),
        &expect!["1a1a0a096c6f63616c3a2f2f6312060a016112013112050a01621200520e0a05616d64363412056c696e75785a00"],
    );
    check(
        &Op::Exec(exec(vec![root()])),
        &[&base()],
        Some("linux/amd64"),
        &expect![
            "0a490a477368613235363a62373735336339343562376139656566643231343734386164656337376639353031613064356364356530616636646663623438326564663832616637373730122e0a270a072f62696e2f73680a022d630a046d616b651209504154483d2f62696e1202423d1a012f580112031a012f520e0a05616d64363412056c696e75785a00"
        ],
    );
    check(
        &source("docker-image://docker.io/library/alpine:3.20"),
        &[],
        None,
        &expect![
            "1a2e0a2c646f636b65722d696d6167653a2f2f646f636b65722e696f2f6c6962726172792f616c70696e653a332e32305a00"
        ],
    );
}

/// The same source for the digests: of each vertex with every field in use, and of the definition with its metadata and places.
#[test]
fn a_graph_of_everything_has_the_digests_that_buildkit_gives_it() {
    let edge = full_graph();
    let digests: Vec<String> = flat(std::slice::from_ref(&edge)).iter().map(|entry| entry.4.to_string()).collect();
    expect![[r#"
        sha256:b7753c945b7a9eefd214748adec77f9501a0d5cd5e0af6dfcb482edf82af7770
        sha256:bed26c0c88155ce241ef7714daed6783834a9e09f39147a7fe9f462ae9623697
        sha256:a74cd89eb3c6b1870cc9b9b835c98a2ae83c0ee8cd161337ff633b4e5f513331
        sha256:fea71a34bbbd4c24659994353de57f8c71e3a0aec519dd659ab1ddecc6f3f5ae
        sha256:b23c59c6b5d0a8b2502daacc6e1a13eb6aba484eb6318adf3656cfdc4f528ce8
        sha256:ff8e5c0ffa0bd2adac6cb21fc2c5a502b80f2dee7ebf5828376f5daaeb498ec8
        sha256:1f42e902425c0c53781829eadc80946966ac5ee9259610a70776d4fd951fa58f
    "#]]
    .assert_eq(&(digests.join("\n") + "\n"));
    assert_eq!(
        Digest::sha256(&encode_definition(&[edge])).to_string(),
        "sha256:fbaa5527ef6482f019db46a752cb3faf7de5d87f5d780b87c420da9544ab501f"
    );
}

/// The document was compared with protobuf for Python: read with `json_format` and BuildKit's `ops.proto`, each operation has the
/// bytes that its digest is of (but for the nested definition, which is left out).
#[test]
fn f1_165_a_graph_of_everything_as_json() {
    let document = definition_json(&[full_graph(), base().output()]);
    expect_file!["llb.json"].assert_eq(&format!("{document:#}\n"));
    assert_eq!(definition_json(&[]).to_string(), r#"{"def":{},"metadata":{},"source":{}}"#);
}

/// A field with its number and bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length > 127 {
        all.push(u8::try_from(length & 127).unwrap() | 128);
        length >>= 7;
    }
    all.push(u8::try_from(length).unwrap());
    all.extend_from_slice(bytes);
    all
}

fn input(digest: &str, index: &[u8]) -> Vec<u8> {
    field(1, &[field(1, digest.as_bytes()), index.to_vec()].concat())
}

/// A definition that asks for its last operation.
fn definition(ops: &[Vec<u8>]) -> Vec<u8> {
    let last = ops.last().map_or(String::new(), |op| Digest::sha256(op).to_string());
    let target = input(&last, &[]);
    ops.iter().chain([&target]).flat_map(|op| field(1, op)).collect()
}

const MINUS_ONE: [u8; 10] = [255, 255, 255, 255, 255, 255, 255, 255, 255, 1];

#[test]
fn a_vertex_keeps_the_bytes_that_it_was_decoded_from() {
    // Without the worker constraints, and with the attributes in another order: not what this client writes.
    let attr = |name: &str| field(2, &[field(1, name.as_bytes()), field(2, b"x")].concat());
    let op = field(3, &[field(1, b"local://x"), attr("b"), attr("a")].concat());
    let edges = decode_definition(&definition(std::slice::from_ref(&op))).unwrap();
    assert_eq!(edges[0].vertex.wire(), op);
    assert_eq!(edges[0].vertex.digest(), &Digest::sha256(&op));
    assert_ne!(encode_op(edges[0].vertex.op(), &[], None), op);
}

#[test]
fn operations_that_make_no_sense_are_refused() {
    let missing = |what| InvalidOp::Missing(what);
    let minus_two = [&[0x08, 0xfe][..], &MINUS_ONE[1..]].concat();
    let root = field(2, &field(3, b"/"));
    let meta = field(1, &field(1, b"sh"));
    let action = |bytes: &[u8]| field(4, &field(2, bytes));
    let mkdir = field(6, &field(1, b"/d"));
    let no_input = [&[0x08][..], &MINUS_ONE, &[0x10], &MINUS_ONE].concat();
    for (op, expected) in [
        (vec![], InvalidOp::UnknownOp),
        (field(9, b""), InvalidOp::UnknownFields),
        ([field(3, b""), field(12, b"x")].concat(), InvalidOp::UnknownFields),
        ([field(3, b""), field(11, &field(1, b"x"))].concat(), InvalidOp::Unsupported("a worker constraint")),
        (field(8, &field(1, b"id")), InvalidOp::Unsupported("a passthrough operation")),
        (field(2, b""), missing("what to run")),
        (field(2, &[field(1, b""), root.clone()].concat()), missing("the program to run")),
        (field(2, &meta), missing("the mount at `/`")),
        (
            field(2, &[meta.clone(), root.clone()].concat()),
            InvalidOp::Index { field: "the input of a mount", index: 0, count: 0 },
        ),
        (
            field(2, &[meta.clone(), field(2, &[minus_two.clone(), field(3, b"/")].concat())].concat()),
            InvalidOp::Index { field: "the input of a mount", index: -2, count: 0 },
        ),
        (
            field(
                2,
                &[meta.clone(), field(2, &[&[0x08][..], &MINUS_ONE, &field(3, b"/"), &[0x30, 9]].concat())].concat(),
            ),
            InvalidOp::UnknownValue { field: "the type of a mount", value: 9 },
        ),
        (
            field(
                2,
                &[meta.clone(), field(2, &[&[0x08][..], &MINUS_ONE, &field(3, b"/"), &[0x30, 1]].concat())].concat(),
            ),
            missing("the secret of a mount"),
        ),
        (
            field(2, &[meta, field(2, &[&[0x08][..], &MINUS_ONE, &field(3, b"/")].concat()), vec![0x18, 7]].concat()),
            InvalidOp::UnknownValue { field: "the network mode", value: 7 },
        ),
        (field(4, b""), missing("the action")),
        (action(&no_input), missing("the kind of an action")),
        (action(&mkdir), InvalidOp::Index { field: "the input of an action", index: 0, count: 0 }),
        (
            action(&[no_input.clone(), field(6, &[&[0x10][..], &MINUS_ONE].concat())].concat()),
            InvalidOp::Number { field: "the mode of an action", value: -1 },
        ),
        (field(6, &field(1, &[8, 5])), InvalidOp::Index { field: "an input of the merge", index: 5, count: 0 }),
        (field(7, &field(2, b"")), missing("the lower input")),
        (field(7, &field(1, &[&[0x08][..], &MINUS_ONE].concat())), missing("the upper input")),
    ] {
        let vertex = Digest::sha256(&op);
        match decode_definition(&definition(std::slice::from_ref(&op))) {
            Err(DecodeError::Vertex { vertex: at, source }) => {
                assert_eq!((at, source), (vertex, expected), "{}", hex(&op));
            }
            other => panic!("{}: {other:?}, but expected {expected:?}", hex(&op)),
        }
    }
}

#[test]
fn definitions_that_make_no_sense_are_refused() {
    let op = field(3, &field(1, b"local://x"));
    let digest = Digest::sha256(&op);
    let ends_with = |target: Vec<u8>| [field(1, &op), field(1, &target)].concat();
    for (bytes, expected) in [
        (field(1, &op), "definition does not end with the edges that are asked for"),
        (field(1, b""), "definition does not end with the edges that are asked for"),
        (vec![0xff; 4], "definition is not well-formed protobuf"),
        (ends_with(vec![0xff]), "definition is not well-formed protobuf"),
        (ends_with(input("", &[])), "which the definition does not contain"),
        (ends_with(input(&Digest::sha256(b"").to_string(), &[])), "which the definition does not contain"),
        (ends_with(input(&digest.to_string(), &[&[0x10][..], &MINUS_ONE].concat())), "is invalid"),
        (
            [definition(std::slice::from_ref(&op)), field(3, &field(1, &field(2, &field(1, &[8, 1]))))].concat(),
            "has a place in source number 1, which the definition does not contain",
        ),
        (
            [
                definition(std::slice::from_ref(&op)),
                field(2, &[field(1, digest.to_string().as_bytes()), field(2, &field(7, b""))].concat()),
            ]
            .concat(),
            "is invalid",
        ),
    ] {
        let error = decode_definition(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{}: {error}", hex(&bytes));
    }
}

/// A vertex that names itself cannot be made without breaking the hash; one that names what is not there can.
#[test]
fn a_missing_input_names_the_vertex_and_the_input() {
    let gone = Digest::sha256(b"gone");
    let op = [input(&gone.to_string(), &[]), field(6, &field(1, &[]))].concat();
    let vertex = Digest::sha256(&op);
    let error = decode_definition(&definition(&[op])).unwrap_err();
    assert_eq!(error, DecodeError::MissingInput { vertex, input: gone.to_string() });
}

/// Every prefix and every flipped bit of a valid definition: an answer, and no panic.
#[test]
fn damaged_bytes_never_panic() {
    let bytes = encode_definition(&[full_graph()]);
    for length in 0..bytes.len() {
        let _ = decode_definition(&bytes[..length]);
    }
    for at in 0..bytes.len() {
        for bit in [0, 3, 7] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let _ = decode_definition(&damaged);
        }
    }
}

#[test]
fn places_outside_of_the_text_are_moved_to_its_edge() {
    let file = Arc::new(SourceFile { name: "Dockerfile".into(), text: "FROM a".into() });
    let span = SourceSpan { file, bytes: 0..6, start_line: 1, end_line: 900 };
    let metadata = Metadata { spans: vec![span], ..Metadata::default() };
    let vertex = Vertex::new(source("x"), vec![], None, metadata);
    let decoded = decode_definition(&encode_definition(&[vertex.output()])).unwrap();
    let span = &decoded[0].vertex.metadata().spans[0];
    assert_eq!((span.start_line, span.end_line, span.bytes.clone()), (1, 1, 0..6));
}
