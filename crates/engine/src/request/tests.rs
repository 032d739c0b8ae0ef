use super::*;

fn output(text: &str) -> String {
    match text.parse::<Output>() {
        Ok(output) => serde_json::to_string(&output).expect("outputs can be written"),
        Err(error) => format!("error: {error}"),
    }
}

/// F2-020 to F2-026, as buildx reads them.
#[test]
fn outputs_are_read_as_buildx_reads_them() {
    let gzip = r#""options":{"compression":{"gzip":null},"force_compression":false,"oci_media_types":true,"rewrite_timestamp":false}"#;
    let docker = gzip.replace("\"oci_media_types\":true", "\"oci_media_types\":false");
    for (text, expected) in [
        ("out", r#"{"type":"local","dest":"out","platform_split":null}"#.to_owned()),
        ("-", r#"{"type":"tar","dest":"stdout","rewrite_timestamp":false}"#.into()),
        ("type=local,dest=out", r#"{"type":"local","dest":"out","platform_split":null}"#.into()),
        ("type=tar,dest=-", r#"{"type":"tar","dest":"stdout","rewrite_timestamp":false}"#.into()),
        ("type=oci,dest=a.tar", format!(r#"{{"type":"oci","dest":{{"path":"a.tar"}},"tar":true,"names":[],{gzip}}}"#)),
        (
            "type=oci,tar=false,dest=d",
            format!(r#"{{"type":"oci","dest":{{"path":"d"}},"tar":false,"names":[],{gzip}}}"#),
        ),
        ("type=docker,dest=a", format!(r#"{{"type":"docker","dest":{{"path":"a"}},"tar":true,"names":[],{docker}}}"#)),
        (
            "\"type=image\",\"name=a,b:1\"",
            format!(
                r#"{{"type":"image","names":["docker.io/library/a:latest","docker.io/library/b:1"],{gzip},"store":true,"push":false,"push_by_digest":false,"insecure":false}}"#
            ),
        ),
        (
            "type=registry,name=a,registry.insecure=true",
            format!(
                r#"{{"type":"image","names":["docker.io/library/a:latest"],{gzip},"store":false,"push":true,"push_by_digest":false,"insecure":true}}"#
            ),
        ),
        ("type=docker", format!(r#"{{"type":"load","target":{{"sockets":[]}},"names":[],{docker}}}"#)),
        (
            "type=docker,compression=zstd:chunked,compression-level=5,force-compression=true",
            format!(r#"{{"type":"load","target":{{"sockets":[]}},"names":[],{docker}}}"#)
                .replace(r#"{"gzip":null}"#, r#"{"zstd-chunked":5}"#)
                .replace(r#"force_compression":false"#, r#"force_compression":true"#),
        ),
        ("type=cacheonly", r#"{"type":"cacheonly"}"#.into()),
    ] {
        // The tag is the variant's name in kebab case.
        assert_eq!(output(text).replace("\"cache-only\"", "\"cacheonly\""), expected, "{text}");
    }
}

#[test]
fn what_an_output_cannot_be_is_named() {
    for (text, part) in [
        ("", "empty"),
        ("dest=x", "`type` is required"),
        ("type=nonsense", "unknown type `nonsense`"),
        ("type=oci", "`dest` is required"),
        ("type=local,dest=-", "standard output"),
        ("type=docker,tar=false", "needs a directory"),
        ("type=image,push-by-digest=true", "needs `push=true`"),
        ("type=oci,dest=a,typo=1", "`typo` is not supported"),
        ("type=oci,dest=a,dest=b", "given twice"),
        ("type=oci,dest=a,compression=lz4", "expected gzip, zstd, estargz, zstd:chunked or uncompressed"),
        ("type=oci,dest=a,compression=estargz,compression-level=10", "the highest level is 9"),
        ("type=oci,dest=a,compression=zstd:chunked,compression-level=23", "the highest level is 22"),
        ("type=oci,dest=a,compression=uncompressed,compression-level=1", "nothing is compressed"),
        ("type=oci,dest=a,force-compression=maybe", "expected true or false"),
        ("type=tar,dest=a,force-compression=true", "`force-compression` is not supported"),
        ("type=oci,dest=a,compression-level=10", "the highest level is 9"),
        ("type=oci,dest=a,tar=maybe", "expected true or false"),
        ("type=oci,dest=a,push", "has no `=`"),
        ("type=oci,\"dest=a", "quote"),
    ] {
        let found = output(text);
        assert!(found.starts_with("error: ") && found.contains(part), "{text}: {found}");
    }
}

#[test]
fn annotations_name_what_they_are_attached_to() {
    use AnnotationTarget::{Index, Manifest, ManifestDescriptor};
    for (text, targets, platform, key) in [
        ("a=b", vec![Manifest], None, "a"),
        ("com.example:x=b", vec![Manifest], None, "com.example:x"),
        ("index:a=b", vec![Index], None, "a"),
        ("manifest,manifest-descriptor:a=b", vec![Manifest, ManifestDescriptor], None, "a"),
        ("manifest[linux/arm64]:a=b", vec![Manifest], Some("linux/arm64"), "a"),
    ] {
        let annotation: Annotation = text.parse().unwrap();
        assert_eq!(
            (annotation.targets, annotation.key.as_str(), annotation.value.as_str()),
            (targets, key, "b"),
            "{text}"
        );
        assert_eq!(annotation.platform.map(|platform| platform.to_string()).as_deref(), platform);
    }
    for text in ["a", "=b", "manifest[x:a=b", "index-of:a=b"] {
        assert!(text.parse::<Annotation>().is_err(), "{text}");
    }
}

#[test]
fn named_contexts_are_told_apart_by_their_scheme() {
    for (text, kind) in [
        ("../lib", "local"),
        ("oci-layout:///images/base", "oci-layout"),
        ("oci-layout://base.tar:1.0", "oci-layout"),
        ("docker-image://alpine", "image"),
        ("https://example.com/x.git", "other"),
        ("git@example.com:x", "other"),
    ] {
        let source = serde_json::to_value(ContextSource::parse(text).unwrap()).unwrap();
        assert_eq!(source["kind"], kind, "{text}");
    }
    for text in ["oci-layout://", "oci-layout://x@sha256:1", "docker-image://A"] {
        assert!(ContextSource::parse(text).is_err(), "{text}");
    }
}
