use std::os::unix::fs::symlink;

use build_engine_rootfs::Tree;

use super::*;

fn context(files: &[&str], ignore: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    if !ignore.is_empty() {
        fs::write(dir.path().join(".dockerignore"), ignore).unwrap();
    }
    dir
}

fn found(dir: &tempfile::TempDir) -> IgnoreFile {
    IgnoreFile::find(dir.path(), None).unwrap()
}

fn listed(files: &[&str], ignore: &str) -> Vec<String> {
    let dir = context(files, ignore);
    let mut lines = Vec::new();
    let mut each = |entry: ContextEntry| {
        lines.push(format!("{} {}", entry.path, entry.kind.as_str()));
        Ok(())
    };
    list(dir.path(), &found(&dir), &mut each).unwrap();
    lines
}

#[test]
fn f1_014_a_kept_file_brings_the_directories_above_it() {
    let files = ["a/b/keep", "a/b/drop", "c"];
    assert_eq!(listed(&files, "*\n!a/b/keep\n"), ["a dir", "a/b dir", "a/b/keep file"]);
    assert_eq!(listed(&files, ".dockerignore\na/b/drop\n"), ["a dir", "a/b dir", "a/b/keep file", "c file"]);
}

#[test]
fn d_12_paths_are_sorted_as_text_whatever_is_a_directory() {
    let files = ["a/x", "a-b", "a.c/y", "a/x.d", "B"];
    let all = ["B file", "a dir", "a-b file", "a.c dir", "a.c/y file", "a/x file", "a/x.d file"];
    assert_eq!(listed(&files, ""), all);
    assert_eq!(listed(&files, "*\n!a-b\n!*/x*\n"), ["a dir", "a-b file", "a/x file", "a/x.d file"]);
}

#[test]
fn a_malformed_pattern_is_named_with_its_line() {
    let dir = context(&[], "ok\n[\n");
    let error = IgnoreFile::find(dir.path(), None).unwrap_err();
    assert_eq!(error.kind, ExitKind::Input);
    assert!(error.to_string().contains('2'), "{error}");
}

fn reason(dir: &tempfile::TempDir, path: &str) -> String {
    let reason = why(dir.path(), &found(dir), path).unwrap();
    let by = reason.decided_by.map_or("nothing".into(), |by| format!("{}:{} at {}", by.line, by.text, by.matched));
    let kept = if reason.kept { "kept" } else { "excluded" };
    let kind = reason.kind.map_or("none", EntryKind::as_str);
    let mut text = format!("{} {kind} {kept} by {by}", reason.path);
    if reason.only_for_what_is_in_it {
        text.push_str(" for its content");
    }
    for (word, path) in [("is", reason.resolved), ("meant", reason.did_you_mean)] {
        if let Some(path) = path {
            text.push_str(&format!(" {word} {path}"));
        }
    }
    text
}

#[test]
fn d_12_the_line_that_decides_is_named_with_what_it_matched() {
    let files = ["src/main.c", "src/main.o", "docs/a.md", "docs/keep/b.md", "README.md", "tmp/x"];
    let dir = context(&files, "# objects\n  **/*.o  \n\ndocs\n!docs/keep\n/tmp/\n!README.md\n");
    symlink("docs", dir.path().join("link")).unwrap();
    for (path, expected) in [
        ("src/main.c", "src/main.c file kept by nothing"),
        ("src/main.o", "src/main.o file excluded by 2:**/*.o at src/main.o"),
        ("docs/a.md", "docs/a.md file excluded by 4:docs at docs"),
        ("docs/keep/b.md", "docs/keep/b.md file kept by 5:!docs/keep at docs/keep"),
        ("docs", "docs dir kept by 4:docs at docs for its content"),
        ("tmp", "tmp dir excluded by 6:/tmp/ at tmp"),
        ("/tmp/../tmp/./x", "tmp/x file excluded by 6:/tmp/ at tmp"),
        ("README.md", "README.md file kept by nothing"),
        ("new.o", "new.o none excluded by 2:**/*.o at new.o"),
        ("src/Main.c", "src/Main.c none kept by nothing meant src/main.c"),
        ("link/a.md", "link/a.md file excluded by 4:docs at docs is docs/a.md"),
        ("link", "link symlink kept by nothing"),
    ] {
        assert_eq!(reason(&dir, path), expected, "{path}");
    }
    let inside = dir.path().join("tmp/x");
    assert_eq!(reason(&dir, inside.to_str().unwrap()), "tmp/x file excluded by 6:/tmp/ at tmp");
    assert_eq!(why(dir.path(), &found(&dir), "../x").unwrap_err().kind, ExitKind::Input);
}

#[test]
fn d_12_the_dockerfiles_own_ignore_file_goes_before() {
    let dir = context(&["a", "b"], "a\n");
    fs::write(dir.path().join("x.Dockerfile.dockerignore"), "b\n").unwrap();
    let ignore = IgnoreFile::find(dir.path(), Some(&dir.path().join("x.Dockerfile"))).unwrap();
    let by = why(dir.path(), &ignore, "b").unwrap().decided_by.unwrap();
    assert!(by.file.ends_with("x.Dockerfile.dockerignore"), "{by:?}");
    assert!(why(dir.path(), &ignore, "a").unwrap().kept);
}

#[test]
fn d_12_sizes_count_what_is_kept_and_what_each_line_saves() {
    let dir =
        context(&["a/b/c", "a/b/d", "a/e", "f", "n/m/x", "n/y", "z.log", "keep.log"], "n\n*.log\n!keep.log\nnone\n");
    fs::write(dir.path().join("a/b/c"), vec![0; 1000]).unwrap();
    fs::write(dir.path().join("n/m/x"), vec![0; 500]).unwrap();
    let sizes = size(dir.path(), &found(&dir), 2).unwrap();
    let ignore_file = fs::metadata(dir.path().join(".dockerignore")).unwrap().len();
    assert_eq!((sizes.size, sizes.files, sizes.directories), (1000 + 4 + ignore_file, 6, 2));
    assert_eq!((sizes.ignored_size, sizes.ignored_files), (502, 3));
    assert_eq!(sizes.largest_files[0], FileSize { path: "a/b/c".into(), size: 1000 });
    let directories: Vec<_> =
        sizes.largest_directories.iter().map(|dir| (dir.path.as_str(), dir.size, dir.files)).collect();
    assert_eq!(directories, [("a", 1002, 3), ("a/b", 1001, 2)]);
    let rules: Vec<_> = sizes.rules.iter().map(|rule| (rule.line, rule.text.as_str(), rule.size, rule.files)).collect();
    assert_eq!(rules, [(1, "n", 501, 2), (2, "*.log", 1, 1), (3, "!keep.log", 1, 1), (4, "none", 0, 0)]);
}

#[test]
fn d_12_an_export_holds_what_ls_shows() {
    let dir = context(&["a/keep", "a/drop", "b/drop"], "*\n!a/keep\n");
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("new");
    export(dir.path(), &found(&dir), ExportTo::Directory(to.clone())).unwrap();
    let mut shown = Vec::new();
    let mut each = |entry: ContextEntry| {
        shown.push(entry.path);
        Ok(())
    };
    list(&to, &IgnoreFile::default(), &mut each).unwrap();
    assert_eq!(shown, ["a", "a/keep"]);
    let again = export(dir.path(), &found(&dir), ExportTo::Directory(to)).unwrap_err();
    assert!(again.to_string().contains("not empty"), "{again}");
    let within = export(dir.path(), &found(&dir), ExportTo::Directory(dir.path().join("out"))).unwrap_err();
    assert!(within.to_string().contains("within the build context"), "{within}");
    assert!(!dir.path().join("out").exists());

    let mut archive = Vec::new();
    export(dir.path(), &found(&dir), ExportTo::Archive(&mut archive)).unwrap();
    let mut archive = tar::Archive::new(&archive[..]);
    let names: Vec<_> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["a/", "a/keep"]);
}

#[test]
fn d_13_the_nearest_path_differs_in_case_by_a_slip_or_in_its_directory() {
    let dir = context(&["src/Main.c", "package.json", "deep/er/config.yaml", "a/b"], "");
    let tree = Tree::open(dir.path()).unwrap();
    for (path, expected) in [
        ("src/main.c", Some(("src/Main.c", Likeness::Case))),
        ("SRC/MAIN.C", Some(("src/Main.c", Likeness::Case))),
        ("pakcage.json", Some(("package.json", Likeness::Spelling))),
        ("scr/Main.c", Some(("src/Main.c", Likeness::Spelling))),
        ("config.yaml", Some(("deep/er/config.yaml", Likeness::Elsewhere))),
        ("x", None),
        ("*.json", None),
        ("completely-other", None),
    ] {
        let near = nearest(&tree, path);
        assert_eq!(near.as_ref().map(|near| (near.path.as_str(), near.likeness)), expected, "{path}");
    }
}
