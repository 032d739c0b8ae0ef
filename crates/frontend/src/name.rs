//! Names of vertices as people see them: `[linux/amd64 build 2/5] RUN make`.

use build_engine_dockerfile::expand::Lex;
use build_engine_oci::Platform;

use crate::env::Env;
use crate::stage::Stage;

/// `os/architecture/variant`, with the version of the operating system where there is one.
pub(crate) fn format_platform(platform: &Platform) -> String {
    let mut os = platform.os.clone();
    if platform.os_version.is_some() || !platform.os_features.is_empty() {
        os.push('(');
        os.push_str(platform.os_version.as_deref().unwrap_or(""));
        for feature in &platform.os_features {
            os.push('+');
            os.push_str(feature);
        }
        os.push(')');
    }
    match &platform.variant {
        Some(variant) => format!("{os}/{}/{variant}", platform.architecture),
        None => format!("{os}/{}", platform.architecture),
    }
}

/// Names the next vertex of `stage`; every call counts one further.
pub(crate) fn next(stage: &mut Stage<'_>, text: &str, multi_platform: bool, platform: &Platform, env: &Env) -> String {
    if stage.total == 0 {
        return text.to_owned();
    }
    stage.index += 1;
    current(stage, text, multi_platform, platform, env)
}

/// Names another vertex of the instruction that [`next`] counted last.
pub(crate) fn current(stage: &Stage<'_>, text: &str, multi_platform: bool, platform: &Platform, env: &Env) -> String {
    if stage.total == 0 {
        return text.to_owned();
    }
    let mut name = String::from("[");
    if multi_platform {
        name.push_str(&format_platform(platform));
        name.push_str(&cross_target(platform, env));
        name.push(' ');
    }
    if !stage.display.is_empty() {
        name.push_str(&stage.display);
        name.push(' ');
    }
    let width = stage.total.ilog10() as usize + 1;
    name.push_str(&format!("{:width$}/{}] ", stage.index, stage.total));
    if stage.in_trigger {
        name.push_str("ONBUILD ");
    }
    name.push_str(text);
    name
}

/// `->arm64` where a stage says by its `TARGET…` variables that it compiles for something else than it runs on.
fn cross_target(platform: &Platform, env: &Env) -> String {
    let Some(target) = target_of(env, platform) else { return String::new() };
    if target.os != platform.os {
        return format!("->{}", format_platform(&target));
    }
    if target.architecture == platform.architecture {
        return String::new();
    }
    match &target.variant {
        Some(variant) => format!("->{}/{variant}", target.architecture),
        None => format!("->{}", target.architecture),
    }
}

fn target_of(env: &Env, platform: &Platform) -> Option<Platform> {
    let (mut os, mut architecture, mut variant) = (None, None, None);
    for name in env.names() {
        let value = env.get(name).filter(|value| !value.is_empty());
        match name {
            "TARGETPLATFORM" => {
                if let Some(target) = value.and_then(|value| value.parse().ok()) {
                    return Some(target);
                }
            }
            "TARGETOS" => os = Some(value),
            "TARGETARCH" => architecture = Some(value),
            "TARGETVARIANT" => variant = Some(value),
            _ => {}
        }
    }
    if os.is_none() && architecture.is_none() && variant.is_none() {
        return None;
    }
    Some(
        Platform {
            os: os.flatten().unwrap_or(&platform.os).to_owned(),
            architecture: architecture.flatten().unwrap_or(&platform.architecture).to_owned(),
            variant: variant.flatten().map(str::to_owned),
            os_version: None,
            os_features: Vec::new(),
        }
        .normalize(),
    )
}

/// The text of an instruction for its name: the first word in upper case, variables replaced where that works.
pub(crate) fn of_instruction(lex: Lex, text: &str, env: &Env) -> String {
    let expanded = lex.word(text, env).map_or_else(|_| text.to_owned(), |expanded| expanded.text);
    upper_first(&expanded)
}

/// `text` with its first word in upper case.
pub(crate) fn upper_first(text: &str) -> String {
    match text.split_once(' ') {
        Some((first, rest)) => format!("{} {rest}", first.to_uppercase()),
        None => text.to_uppercase(),
    }
}
