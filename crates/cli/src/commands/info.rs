//! `info`: what this host offers to builds, and what to change where that is too little.

use build_engine_engine::UserNamespace;
use serde_json::Value;

use crate::errors::Failure;
use crate::output::{self, Format};
use crate::session::with_engine;
use crate::settings::Settings;
use crate::ui::text;

/// Flags of `info`.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Asks the worker, which sees the host as builds do.
pub(crate) fn run(flags: &Flags, settings: &Settings) -> Result<u8, Failure> {
    let info = with_engine(settings, UserNamespace::Private, None, |engine| async move { engine.host_info().await })?;
    match flags.format {
        Format::Json => output::print_json(&info)?,
        Format::Table => {
            let mut rows = vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
            output::print(&page(&mut rows, &info))?;
        }
    }
    Ok(0)
}

/// Two columns, then the notes.
fn page(rows: &mut Vec<(String, String)>, info: &Value) -> String {
    let mut notes = Vec::new();
    collect(rows, &mut notes, "", info);
    notes.extend(advice(info));
    let width = rows.iter().map(|(name, _)| text::width(name)).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in rows {
        out.push_str(format!("{name:width$}  {}", text::clean(value)).trim_end());
        out.push('\n');
    }
    if !notes.is_empty() {
        out.push_str("\nnotes\n");
        for note in notes {
            out.push_str(&format!("  - {}\n", note.lines().map(text::clean).collect::<Vec<_>>().join("\n    ")));
        }
    }
    out
}

/// What is missing on this host, and the line that mends it.
fn advice(info: &Value) -> Vec<String> {
    let absent = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || *value == 0;
    // Root needs no range of its own.
    let root = info.get("root") == Some(&Value::Bool(true));
    [
        ("overlay", "the kernel has no overlayfs", "modprobe overlay"),
        (
            "id_map_tools",
            "newuidmap and newgidmap are missing: without root, images have one owner",
            "apt-get install uidmap",
        ),
        (
            "subordinate_uids",
            "no subordinate user ids: without root, images have one owner",
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
        ),
        ("pasta", "pasta is missing: RUN uses the network of the host", "apt-get install passt"),
    ]
    .into_iter()
    .filter(|(member, ..)| !(root && matches!(*member, "id_map_tools" | "subordinate_uids")))
    .filter(|(member, ..)| info.get(member).is_some_and(absent))
    .map(|(_, what, fix)| format!("{what}\nfix: {fix}"))
    .collect()
}

/// Flattens objects into `outer inner` rows; members named `notes` are kept for the end.
fn collect(rows: &mut Vec<(String, String)>, notes: &mut Vec<String>, prefix: &str, value: &Value) {
    let Value::Object(members) = value else {
        rows.push((prefix.to_owned(), cell(value)));
        return;
    };
    for (name, value) in members {
        if name == "notes"
            && let Value::Array(items) = value
        {
            notes.extend(items.iter().map(note));
            continue;
        }
        let name = name.replace('_', " ");
        let name = if prefix.is_empty() { name } else { format!("{prefix} {name}") };
        collect(rows, notes, &name, value);
    }
}

/// One note: a sentence, and below it the line that mends it.
fn note(item: &Value) -> String {
    match item {
        Value::String(text) => text.clone(),
        Value::Object(members) => members.values().map(cell).collect::<Vec<_>>().join("\n"),
        other => cell(other),
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) if items.is_empty() => "none".into(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            members.iter().map(|(name, value)| format!("{name} {}", cell(value))).collect::<Vec<_>>().join(" ")
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_page_shows_every_member_and_the_notes_last() {
        let info = json!({
            "mode": "rootless",
            "notes": ["no subordinate uids for `u`\nfix: sudo usermod --add-subuids 100000-165535 u"],
            "user_namespaces": true,
            "pasta": null,
            "overlay": { "in_user_namespace": false, "reason": null },
            "emulators": ["arm64", "riscv64"],
        });
        expect![[r#"
            version                    1
            mode                       rootless
            user namespaces            yes
            pasta                      -
            overlay in user namespace  no
            overlay reason             -
            emulators                  arm64, riscv64

            notes
              - no subordinate uids for `u`
                fix: sudo usermod --add-subuids 100000-165535 u
              - pasta is missing: RUN uses the network of the host
                fix: apt-get install passt
        "#]]
        .assert_eq(&page(&mut vec![("version".into(), "1".into())], &info));
    }
}
