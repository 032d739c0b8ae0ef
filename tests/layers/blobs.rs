//! L17: blobs that are not what their names say.

use build_engine_testkit::archive::{Member, archive};
use build_engine_testkit::engine::Who;
use build_engine_testkit::fixtures::gzip;
use build_engine_testkit::sha256;

use crate::{Bench, Blob, fails, has, text};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn wrong_blobs(who: Who) {
    let Some(bench) = Bench::new(who) else { return };
    // What does not compress, so that a flipped bit is in the content.
    let content: Vec<u8> = (0..5000_u32).flat_map(|n| sha256(&n.to_le_bytes()).into_bytes()).collect();
    let tar = archive([&Member::file("x", &content)]);
    let good = || Blob::compressed(gzip(&tar).unwrap(), GZIP, sha256(&tar));
    let length = good().bytes.len();
    let mut cases: Vec<(String, Blob, &str)> = Vec::new();
    let mut add = |name: &str, change: &dyn Fn(&mut Blob), part: &'static str| {
        let mut blob = good();
        change(&mut blob);
        cases.push((name.to_owned(), blob, part));
    };
    add("shorter by a byte", &|blob| blob.bytes.truncate(length - 1), "");
    add("cut in the middle", &|blob| blob.bytes.truncate(length / 2), "");
    add("empty", &|blob| blob.bytes.clear(), "");
    add("longer by a byte", &|blob| blob.bytes.push(0), "");
    add("longer by itself", &|blob| blob.bytes.extend(blob.bytes.clone()), "");
    for at in [0, 3, 9, length / 3, length / 2, length - 9, length - 1] {
        add(&format!("one bit flipped in byte {at}"), &|blob| blob.bytes[at] ^= 0x10, "");
    }
    add("another size in the descriptor, larger", &|blob| blob.size += 1, "size");
    add("another size in the descriptor, smaller", &|blob| blob.size -= 1, "");
    add("no size in the descriptor", &|blob| blob.size = 0, "");
    add("another DiffID (GHSA-f2v9-hprr-32q3)", &|blob| blob.diff_id = sha256(b"another"), "content of layer");
    add("the blob's digest as its DiffID", &|blob| blob.diff_id = blob.digest.clone(), "content of layer");
    let mut wrong = Vec::new();
    for (name, blob, part) in cases {
        let digest = blob.digest.clone();
        let blobs = [blob];
        let base = bench.layout("case", &blobs);
        let (run, _) = bench.tree(&base);
        let parts = [digest, part.to_owned()];
        if let Err(why) =
            bench.harmless().and_then(|()| fails(&run, 4, &parts)).and_then(|()| bench.left_no_blob(&blobs))
        {
            wrong.push(format!("L17: {name}\n    {why}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    bench.works();
    // The right bytes of that very digest are read again.
    let (run, tree) = bench.tree(&bench.layout("case", &[good()]));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    has(&tree.unwrap(), &[("/x".to_owned(), text(&content))]).unwrap();
}

#[test]
fn l17_blobs_that_are_not_what_they_claim_as_root() {
    wrong_blobs(Who::Root);
}

#[test]
fn l17_blobs_that_are_not_what_they_claim_as_a_user() {
    wrong_blobs(Who::User);
}
