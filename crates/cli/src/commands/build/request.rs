//! From flags to a request: every value is parsed here, once, and everything that is wrong is reported at once.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use build_engine_engine::{
    ARCHIVE_HEAD, BuildRequest, ContextSource, DockerfileSource, Entitlement, ImageOptions, Limit, LoadTarget,
    MainContext, NetworkMode, NoCache, Output, OutputDest, Report, ResourceLimits, UPLOAD, UserNamespace, is_archive,
    shown,
};
use build_engine_oci::{Platform, Reference};

use super::flags::{self, Flags, OtherFlags};
use super::frontend_opt;
use super::limits;
use super::secrets;
use crate::commands::call::{Call, Method, parse_call};
use crate::commands::{dockerfile, lock_file};
use crate::errors::Failure;
use crate::settings::{self, Environment, ProgressChoice, set};

/// A request, and what the face itself has to do.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) request: BuildRequest,
    /// A file that the request names; it goes with the plan.
    pub(crate) spool: Option<tempfile::TempPath>,
    pub(crate) user_namespace: UserNamespace,
    pub(crate) timeout: Option<Duration>,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
    pub(crate) progress: Option<ProgressChoice>,
    pub(crate) iidfile: Option<PathBuf>,
    pub(crate) metadata_file: Option<PathBuf>,
    /// What is asked about the Dockerfile instead of building it.
    pub(crate) call: Option<Call>,
}

/// Findings so far.
#[derive(Default)]
pub(super) struct Findings(Vec<Report>);

impl Findings {
    fn add(&mut self, rule: &str, message: impl Into<String>) -> &mut Report {
        self.0.push(Report::new(rule, message));
        self.0.last_mut().expect("one was just added")
    }

    /// A flag whose value cannot be understood.
    pub(super) fn invalid(&mut self, flag: &str, value: &str, reason: impl std::fmt::Display) {
        self.add("invalid-flag", format!("`{flag} {value}`: {reason}"));
    }

    /// A flag that this version does not have.
    fn unsupported(&mut self, flag: &str, hint: &str) {
        self.add("unsupported-flag", format!("`{flag}` is not supported yet")).hint = Some(hint.to_owned());
    }
}

/// Makes the request. Reads the Dockerfile, nothing else of the context.
///
/// # Errors
/// All flags that are refused or not understood, together; or a Dockerfile that cannot be read.
pub(crate) fn plan(mut flags: Flags, env: Environment<'_>) -> Result<Plan, Failure> {
    let mut findings = Findings::default();
    for (text, reason) in frontend_opt::apply(&mut flags) {
        findings.invalid("--frontend-opt", &text, reason);
    }
    refuse(&mut findings, &flags.other);
    let call = call(&mut findings, &flags.other);
    let quiet = flags.quiet.unwrap_or(false);
    if quiet && flags.progress.is_some_and(|progress| !matches!(progress, ProgressChoice::Auto)) {
        findings.add("invalid-flag", "`--quiet` and `--progress` cannot be used together");
    }
    let context = context(&mut findings, &flags.context);
    let build_args = build_args(&mut findings, &flags, env);
    let source_date_epoch = source_date_epoch(&mut findings, &build_args);
    let platforms = platforms(&mut findings, &flags.platform);
    let tags = tags(&mut findings, &flags.tag);
    let mut outputs = outputs(&mut findings, &flags.output, quiet);
    shorthands(&mut outputs, flags.push == Some(true), flags.load == Some(true));
    find_daemons(&mut findings, &mut outputs, env);
    let nameless = |output: &Output| matches!(output, Output::Image { push: true, names, .. } if names.is_empty());
    if tags.is_empty() && flags.tag.is_empty() && outputs.iter().any(nameless) {
        findings.add("no-name", "an image that is pushed needs a name").hint =
            Some("give one with `-t REGISTRY/NAME:TAG`, or `name=` in `--output`".into());
    }
    if outputs.is_empty() && tags.is_empty() && (quiet || flags.iidfile.is_some() || flags.metadata_file.is_some()) {
        // Somebody wants to know the digest of an image, so there has to be one.
        outputs.push(Output::image());
    }
    let named_contexts = named_contexts(&mut findings, &flags.build_context);
    let labels = labels(&mut findings, &flags.label);
    let annotations = each(&mut findings, "--annotation", &flags.annotation);
    let extra_hosts = extra_hosts(&mut findings, &flags.add_host, flags.network == Some(NetworkMode::Host));
    let ulimits = ulimits(&mut findings, &flags.ulimit);
    let resources = resources(&mut findings, &flags.limits.fields(), &flags.resource);
    let no_cache = no_cache(&mut findings, &flags);
    let granted: Vec<String> = flags.allow.iter().filter(|text| !text.is_empty()).cloned().collect();
    let allow = allow(&mut findings, &granted);
    let mut session = secrets::session(&mut findings, &flags.secret, &flags.ssh, env);
    if !findings.0.is_empty() {
        return Err(Failure::inputs(findings.0));
    }
    let context = context.unwrap_or(Given::Stdin);
    let Opened { source, dockerfile, directory, remote, uploads, spool } =
        open(flags.file.as_deref(), context, Path::new(&flags.context))?;
    let lock = directory.as_deref().map(lock_file::read).transpose()?.flatten();
    let lend_agent = std::iter::once(remote.as_deref())
        .chain(named_contexts.values().map(|source| match source {
            ContextSource::Other { url } => Some(url.as_str()),
            _ => None,
        }))
        .flatten()
        .filter_map(MainContext::parse)
        .any(|context| context.needs_agent());
    if flags.locked == Some(true) && lock.is_none() {
        let message = format!("`--locked` needs `{}` in the build context", lock_file::NAME);
        return Err(Failure::input("locked", message).hint("`build-engine lock CONTEXT` makes it"));
    }
    let lock = lock.unwrap_or_default();
    session.environment = settings::for_programs(env);
    session.lend_agent = lend_agent;

    let request = BuildRequest {
        build_id: new_id(),
        dockerfile: source.text,
        dockerfile_name: source.name,
        dockerfile_path: source.path,
        context: directory,
        remote_context: remote,
        dockerfile_source: dockerfile,
        uploads,
        named_contexts,
        tags,
        platforms,
        build_args,
        labels,
        annotations,
        target: flags.target.filter(|target| !target.is_empty()),
        no_cache,
        pull: flags.pull == Some(true),
        lock,
        locked: flags.locked == Some(true),
        network: flags.network.unwrap_or_default(),
        extra_hosts,
        ulimits,
        shm_size_bytes: flags.shm_size.unwrap_or(0),
        cgroup_parent: flags.cgroup_parent.unwrap_or_default(),
        source_date_epoch,
        outputs,
        attestations: Vec::new(),
        resources,
        allow_private_urls: flags.allow_private_urls == Some(true),
        allow,
        session,
        isolation: flags.isolation.unwrap_or_default(),
        fast_paths: flags.fast_paths != Some(false),
        keep_failed: flags.other.rm == Some(false) && flags.other.force_rm != Some(true),
    };
    Ok(Plan {
        request,
        spool,
        user_namespace: flags.userns.unwrap_or_default(),
        timeout: flags.timeout,
        quiet,
        verbose: flags.verbose.unwrap_or(false),
        progress: flags.progress,
        iidfile: flags.iidfile,
        metadata_file: flags.metadata_file,
        call,
    })
}

/// Sets what decides over the meaning of a Dockerfile by itself: target, platforms and build arguments.
///
/// # Errors
/// As [`plan`].
pub(crate) fn set_language(request: &mut BuildRequest, flags: Flags, env: Environment<'_>) -> Result<(), Failure> {
    let mut findings = Findings::default();
    request.build_args = build_args(&mut findings, &flags, env);
    request.platforms = platforms(&mut findings, &flags.platform);
    request.target = flags.target.filter(|target| !target.is_empty());
    if findings.0.is_empty() { Ok(()) } else { Err(Failure::inputs(findings.0)) }
}

/// The value of `--call`, of which `--check` is a short form.
fn call(findings: &mut Findings, flags: &OtherFlags) -> Option<Call> {
    let text = flags.call.as_deref().unwrap_or_default();
    match parse_call(text) {
        Ok(call) if flags.check == Some(true) => match call {
            None => Some(Call::CHECK),
            Some(call) if call.method == Method::Check => Some(call),
            Some(_) => {
                findings.invalid("--call", text, "`--check` asks for something else");
                None
            }
        },
        Ok(call) => call,
        Err(reason) => {
            findings.invalid("--call", text, reason);
            None
        }
    }
}

/// Refuses by name what this version cannot do, unless the value asks for nothing.
fn refuse(findings: &mut Findings, flags: &OtherFlags) {
    let asked = |flag: Option<bool>| flag == Some(true);
    let given = |flag: &Option<String>| flag.as_deref().is_some_and(|value| !value.is_empty());
    let attestation = |kind: &str, value: &str| match flags::boolean(value) {
        Ok(asked) => asked,
        Err(_) => !is_disabled(&format!("type={kind},{value}")),
    };
    const ATTESTATIONS: &str = "leave it out, or turn it off by name: `--provenance=false`, `--sbom=false`";
    for (refused, flag, hint) in [
        (!flags.cache_from.is_empty(), "--cache-from", "the store keeps the cache between builds of this machine"),
        (!flags.cache_to.is_empty(), "--cache-to", "the store keeps the cache between builds of this machine"),
        (flags.attest.iter().any(|value| !is_disabled(value)), "--attest", ATTESTATIONS),
        (
            flags.provenance.as_deref().is_some_and(|value| attestation("provenance", value)),
            "--provenance",
            ATTESTATIONS,
        ),
        (flags.sbom.as_deref().is_some_and(|value| attestation("sbom", value)), "--sbom", ATTESTATIONS),
        (given(&flags.builder), "--builder", "this version builds with the embedded engine; leave it out"),
        (
            flags.backend.as_deref().is_some_and(|value| value != "embedded"),
            "--backend",
            "`--backend=embedded` is the only one in this version",
        ),
        (!flags.on_failure.is_empty(), "--on-failure", "build the stage before with `--target` to look at it"),
        (asked(flags.squash), "--squash", "every step makes a layer; build onto one with a last stage and COPY --from"),
        (!flags.security_opt.is_empty(), "--security-opt", "the sandbox has no options in this version"),
    ] {
        if refused {
            findings.unsupported(flag, hint);
        }
    }
    // What `--force-rm` and `--compress` ask for holds here anyway: nothing is left behind, nothing is transferred.
    // `--rm` and `--frontend-opt` act; they stand among these flags because buildx has none of them.
    let OtherFlags { force_rm: _, compress: _, .. } = flags;
}

/// Whether `--attest` says that the attestation is not wanted.
fn is_disabled(value: &str) -> bool {
    value
        .split(',')
        .filter_map(|field| field.split_once('='))
        .any(|(key, value)| key.trim() == "disabled" && flags::boolean(value.trim()).unwrap_or(false))
}

/// A build context, as it was named.
enum Given {
    Directory(PathBuf),
    /// An address.
    Remote(String),
    /// Standard input: an archive, or a Dockerfile without context.
    Stdin,
}

fn context(findings: &mut Findings, text: &str) -> Option<Given> {
    if text == "-" {
        return Some(Given::Stdin);
    }
    let path = Path::new(text);
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => match std::path::absolute(path) {
            Ok(path) => Some(Given::Directory(path)),
            Err(error) => {
                findings.invalid("CONTEXT", text, error);
                None
            }
        },
        _ if MainContext::parse(text).is_some() => Some(Given::Remote(text.to_owned())),
        Ok(_) => {
            findings.add("invalid-context", format!("the context `{text}` is not a directory")).hint =
                Some("name the Dockerfile with `-f`, and the directory it copies from as context".into());
            None
        }
        Err(_) if text.contains("://") => {
            findings.add("invalid-context", format!("the context `{}` is of no known kind", shown(text))).hint =
                Some("a directory, a git repository, an http(s) URL or `-` can be a context".into());
            None
        }
        Err(error) => {
            findings.add("invalid-context", format!("cannot use the context `{text}`")).causes =
                vec![error.to_string()];
            None
        }
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// The Dockerfile and the context of a build, as the request has them.
#[derive(Default)]
struct Opened {
    source: Source,
    dockerfile: DockerfileSource,
    directory: Option<PathBuf>,
    remote: Option<String>,
    uploads: BTreeMap<String, PathBuf>,
    /// Goes with the build.
    spool: Option<tempfile::TempPath>,
}

/// Reads what has to be read before the engine is asked. Which of several meanings holds is decided as in buildx.
fn open(file: Option<&str>, given: Given, context_shown: &Path) -> Result<Opened, Failure> {
    let file = file.filter(|file| !file.is_empty());
    let stdin = || dockerfile::read(std::io::stdin().lock(), "standard input");
    let named = |text: String| Source { name: "Dockerfile".into(), path: None, text };
    let mut opened = Opened::default();
    match given {
        Given::Directory(directory) => {
            match file {
                Some(file) if is_url(file) => opened.dockerfile = DockerfileSource::Url(file.to_owned()),
                _ => opened.source = read_dockerfile(file, &directory, context_shown)?,
            }
            opened.directory = Some(directory);
        }
        Given::Remote(address) => {
            match file {
                Some("-") => opened.source = named(stdin()?),
                Some(file) if is_url(file) => opened.dockerfile = DockerfileSource::Url(file.to_owned()),
                Some(file) if Path::new(file).is_absolute() => {
                    opened.source = read_dockerfile(Some(file), Path::new("/"), context_shown)?;
                }
                file => opened.dockerfile = DockerfileSource::Context(file.unwrap_or("Dockerfile").to_owned()),
            }
            opened.remote = Some(address);
        }
        Given::Stdin => {
            if file == Some("-") {
                return Err(Failure::input("invalid-flag", "standard input cannot be both context and Dockerfile"));
            }
            let failed = |error: &std::io::Error| Failure::io("cannot read the context from standard input", error);
            let mut input = std::io::stdin().lock();
            let mut head = Vec::new();
            input.by_ref().take(ARCHIVE_HEAD as u64).read_to_end(&mut head).map_err(|error| failed(&error))?;
            let mut input = std::io::Cursor::new(&head).chain(input);
            if is_archive(&head) {
                let mut spool = tempfile::NamedTempFile::new().map_err(|error| failed(&error))?;
                std::io::copy(&mut input, &mut spool).map_err(|error| failed(&error))?;
                let spool = spool.into_temp_path();
                opened.uploads.insert("context".into(), spool.to_path_buf());
                opened.spool = Some(spool);
                opened.remote = Some(format!("{UPLOAD}context"));
                opened.dockerfile = match file {
                    Some(file) if is_url(file) => DockerfileSource::Url(file.to_owned()),
                    file => DockerfileSource::Context(file.unwrap_or("Dockerfile").to_owned()),
                };
            } else if let Some(file) = file {
                let message = format!("both standard input and `-f {file}` are Dockerfiles");
                return Err(Failure::input("invalid-flag", message).hint("give a directory as context"));
            } else {
                opened.source = named(dockerfile::read(input, "standard input")?);
            }
        }
    }
    Ok(opened)
}

/// A Dockerfile that was read.
#[derive(Default)]
struct Source {
    name: String,
    path: Option<PathBuf>,
    text: String,
}

fn read_dockerfile(file: Option<&str>, context: &Path, context_shown: &Path) -> Result<Source, Failure> {
    let path = match file.filter(|file| !file.is_empty()) {
        Some("-") => {
            let text = dockerfile::read(std::io::stdin().lock(), "standard input")?;
            return Ok(Source { name: "Dockerfile".into(), path: None, text });
        }
        Some(file) => {
            let path = std::path::absolute(file)
                .map_err(|error| Failure::io(format!("cannot use `{file}` as Dockerfile"), &error))?;
            if !path.exists() {
                let failure = Failure::input("no-dockerfile", format!("there is no Dockerfile at `{file}`"));
                return Err(match context.join(file).exists() {
                    true => failure.hint(format!(
                        "`-f` starts from the current directory: did you mean `{}`?",
                        context_shown.join(file).display()
                    )),
                    false => failure,
                });
            }
            return Ok(Source { name: file.to_owned(), text: dockerfile::read_file(&path)?, path: Some(path) });
        }
        None => ["Dockerfile", "dockerfile"].map(|name| context.join(name)).into_iter().find(|path| path.exists()),
    };
    let Some(path) = path else {
        let failure =
            Failure::input("no-dockerfile", format!("there is no Dockerfile in `{}`", context_shown.display()));
        return Err(failure.hint(if context.join("Containerfile").exists() {
            format!("there is `{0}`: use `-f {0}`", context_shown.join("Containerfile").display())
        } else {
            "name it with `-f FILE`".into()
        }));
    };
    of_the_context(&path, context)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Source { name, text: dockerfile::read_file(&path)?, path: Some(path) })
}

/// Refuses a Dockerfile that nobody named and that is none of the context's files: a context that was unpacked from somewhere
/// must not make the build read elsewhere, or wait at a pipe.
fn of_the_context(path: &Path, context: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let refuse = |message: String| Err(Failure::input("dockerfile", message).hint("name it with `-f` if it is meant"));
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return refuse(format!("`{shown}` is not a regular file"));
    }
    match (path.canonicalize(), context.canonicalize()) {
        (Ok(real), Ok(context)) if !real.starts_with(&context) => {
            refuse(format!("`{shown}` is a link that leads out of the context, to `{}`", real.display()))
        }
        _ => Ok(()),
    }
}

fn build_args(findings: &mut Findings, flags: &Flags, env: Environment<'_>) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    let mut add = |findings: &mut Findings, flag: &str, text: &str| match text.split_once('=') {
        Some(("", _)) => findings.invalid(flag, text, "expected NAME=value"),
        Some((name, value)) => {
            args.insert(name.to_owned(), value.to_owned());
        }
        None if text.is_empty() => findings.invalid(flag, text, "expected NAME or NAME=value"),
        None => {
            if let Some(value) = env(text) {
                match value.into_string() {
                    Ok(value) => {
                        args.insert(text.to_owned(), value);
                    }
                    Err(_) => findings.invalid(flag, text, "the value in the environment is not UTF-8 text"),
                }
            }
        }
    };
    for path in &flags.build_arg_file {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
                    add(findings, &format!("--build-arg-file {}:", path.display()), line);
                }
            }
            Err(error) => findings.invalid("--build-arg-file", &path.display().to_string(), error),
        }
    }
    for text in &flags.build_arg {
        add(findings, "--build-arg", text);
    }
    if let Some(epoch) = set(env, "SOURCE_DATE_EPOCH") {
        args.entry("SOURCE_DATE_EPOCH".into()).or_insert_with(|| epoch.to_string_lossy().into_owned());
    }
    args
}

fn source_date_epoch(findings: &mut Findings, build_args: &BTreeMap<String, String>) -> Option<i64> {
    let text = build_args.get("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty())?;
    match text.parse::<i64>() {
        Ok(epoch) if epoch >= 0 => Some(epoch),
        // `context`, or the name of a context or stage: the frontend knows.
        Err(_) if text.starts_with(|first: char| first.is_ascii_alphabetic()) => None,
        _ => {
            findings
                .add("invalid-setting", format!("SOURCE_DATE_EPOCH `{text}` is not a number of seconds since 1970"));
            None
        }
    }
}

/// Parses every value of a flag.
fn each<T: std::str::FromStr<Err: std::fmt::Display>>(findings: &mut Findings, flag: &str, texts: &[String]) -> Vec<T> {
    texts
        .iter()
        .filter_map(|text| match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                findings.add("invalid-flag", format!("`{flag}`: {error}"));
                None
            }
        })
        .collect()
}

fn allow(findings: &mut Findings, texts: &[String]) -> Vec<Entitlement> {
    let mut granted = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(entitlement) => granted.push(entitlement),
            Err(error) => findings.invalid("--allow", text, error),
        }
    }
    granted
}

fn platforms(findings: &mut Findings, texts: &[String]) -> Vec<Platform> {
    let texts: Vec<String> = texts
        .iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
        .map(|text| if text == "local" { Platform::host().to_string() } else { text.to_owned() })
        .collect();
    let mut platforms: Vec<Platform> = Vec::new();
    for platform in each::<Platform>(findings, "--platform", &texts) {
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    platforms
}

fn tags(findings: &mut Findings, texts: &[String]) -> Vec<Reference> {
    let mut tags: Vec<Reference> = Vec::new();
    for tag in each::<Reference>(findings, "--tag", texts) {
        if tag.digest().is_some() {
            findings.invalid("--tag", &tag.familiar(), "a digest cannot be given as a name");
            continue;
        }
        let tag = tag.or_latest();
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

fn outputs(findings: &mut Findings, texts: &[String], quiet: bool) -> Vec<Output> {
    let mut outputs: Vec<Output> = each(findings, "--output", texts);
    let mut to_stdout = 0;
    for output in &mut outputs {
        match output {
            Output::Oci { dest, tar, .. } | Output::Docker { dest, tar, .. } => {
                if !*tar && *dest == OutputDest::Stdout {
                    findings.add("invalid-flag", "`--output`: `tar=false` needs a directory as `dest`");
                }
                to_stdout += usize::from(*dest == OutputDest::Stdout);
                absolute(findings, dest);
            }
            Output::Tar { dest, .. } => {
                to_stdout += usize::from(*dest == OutputDest::Stdout);
                absolute(findings, dest);
            }
            Output::Local { dest, .. } => match std::path::absolute(&*dest) {
                Ok(path) => *dest = path,
                Err(error) => findings.invalid("--output", &dest.display().to_string(), error),
            },
            Output::Image { .. } | Output::Load { .. } | Output::CacheOnly => {}
        }
    }
    if to_stdout > 1 || (to_stdout == 1 && quiet) {
        findings.add("invalid-flag", "only one thing can be written to standard output").hint =
            Some("write the others to files, and leave `--quiet` out".into());
    }
    if to_stdout > 0 && rustix::termios::isatty(rustix::stdio::stdout()) {
        findings.add("invalid-flag", "an archive is not written to a terminal").hint =
            Some("redirect standard output, or give a file as `dest`".into());
    }
    outputs
}

/// What `--push` and `--load` are short for, as in buildx.
fn shorthands(outputs: &mut Vec<Output>, push: bool, load: bool) {
    if push {
        let mut pushed = false;
        for output in outputs.iter_mut() {
            if let Output::Image { push, .. } = output {
                (*push, pushed) = (true, true);
            }
        }
        if !pushed {
            let mut output = Output::image();
            if let Output::Image { push, .. } = &mut output {
                *push = true;
            }
            outputs.push(output);
        }
    }
    if load && !outputs.iter().any(|output| matches!(output, Output::Load { .. })) {
        let options = ImageOptions { oci_media_types: false, ..ImageOptions::default() };
        outputs.push(Output::Load { target: LoadTarget::default(), names: Vec::new(), options });
    }
}

/// Fills in the local daemon where something is to be loaded.
fn find_daemons(findings: &mut Findings, outputs: &mut [Output], env: Environment<'_>) {
    for output in outputs {
        if let Output::Load { target, .. } = output {
            match settings::load_target(env) {
                Ok(found) => *target = found,
                Err(report) => findings.0.push(*report),
            }
        }
    }
}

fn absolute(findings: &mut Findings, dest: &mut OutputDest) {
    if let OutputDest::Path(path) = dest {
        match std::path::absolute(&*path) {
            Ok(absolute) => *path = absolute,
            Err(error) => findings.invalid("--output", &path.display().to_string(), error),
        }
    }
}

fn named_contexts(findings: &mut Findings, texts: &[String]) -> BTreeMap<String, ContextSource> {
    let mut contexts = BTreeMap::new();
    for text in texts {
        let Some((name, source)) = text.split_once('=').filter(|(name, source)| !name.is_empty() && !source.is_empty())
        else {
            findings.invalid("--build-context", text, "expected NAME=SOURCE");
            continue;
        };
        let mut source = match ContextSource::parse(source) {
            Ok(source) => source,
            Err(error) => {
                findings.add("invalid-flag", format!("`--build-context {name}=`: {error}"));
                continue;
            }
        };
        match &mut source {
            ContextSource::Local { path } => match std::fs::canonicalize(&*path) {
                Ok(absolute) => *path = absolute,
                Err(error) => findings.invalid("--build-context", text, error),
            },
            // One that is missing is a missing source, which the engine says.
            ContextSource::OciLayout { path, .. } => {
                match std::fs::canonicalize(&*path).or_else(|_| std::path::absolute(&*path)) {
                    Ok(absolute) => *path = absolute,
                    Err(error) => findings.invalid("--build-context", text, error),
                }
            }
            ContextSource::Image { .. } => {}
            ContextSource::Other { url } if MainContext::parse(url).is_some() => {}
            ContextSource::Other { url } => findings.invalid(
                "--build-context",
                &format!("{name}={}", shown(url)),
                "a directory, docker-image://, oci-layout://, a git repository or an http(s) URL can be a context",
            ),
        }
        if let ContextSource::Local { path } = &source
            && path.exists()
            && !path.is_dir()
        {
            findings.invalid("--build-context", text, "not a directory");
        }
        contexts.insert(name.to_owned(), source);
    }
    contexts
}

fn labels(findings: &mut Findings, texts: &[String]) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for text in texts {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            findings.invalid("--label", text, "expected NAME=value");
        }
        labels.insert(name.to_owned(), value.to_owned());
    }
    labels
}

fn extra_hosts(findings: &mut Findings, texts: &[String], host_network: bool) -> Vec<(String, String)> {
    let mut hosts = Vec::new();
    for text in texts {
        let Some((name, address)) = text.split_once(['=', ':']).filter(|(name, _)| !name.is_empty()) else {
            findings.invalid("--add-host", text, "expected NAME:ADDRESS or NAME=ADDRESS");
            continue;
        };
        let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        // In the host's network, the host is where its loopback device is.
        let address = if address == "host-gateway" && host_network { "127.0.0.1" } else { address };
        if address == "host-gateway" {
            const HINT: &str = "a private network has no way to the host: add `--network=host`, or give an address";
            findings.unsupported("--add-host NAME:host-gateway", HINT);
        } else if address.parse::<std::net::IpAddr>().is_err() {
            findings.invalid("--add-host", text, format!("`{address}` is not an IP address"));
        } else if name.contains(|char: char| char.is_whitespace() || char.is_control()) {
            findings.invalid("--add-host", text, "the name has a blank in it");
        }
        hosts.push((name.to_owned(), address.to_owned()));
    }
    hosts
}

fn ulimits(findings: &mut Findings, texts: &[String]) -> Vec<Limit> {
    const NAMES: &[&str] = &[
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let mut limits: Vec<Limit> = Vec::new();
    for text in texts {
        let parsed = text.split_once('=').and_then(|(name, value)| {
            let (soft, hard) = value.split_once(':').unwrap_or((value, value));
            Some(Limit { name: name.to_owned(), soft: soft.parse().ok()?, hard: hard.parse().ok()? })
        });
        match parsed {
            None => findings.invalid("--ulimit", text, "expected NAME=SOFT[:HARD], numbers or -1"),
            Some(limit) if !NAMES.contains(&limit.name.as_str()) => {
                findings.invalid("--ulimit", text, format!("the name is one of {}", NAMES.join(", ")));
            }
            Some(Limit { soft, hard, .. }) if soft < -1 || hard < -1 => {
                findings.invalid("--ulimit", text, "a limit is a number, or -1 for none");
            }
            Some(Limit { soft, hard, .. }) if hard != -1 && (soft > hard || soft == -1) => {
                findings.invalid("--ulimit", text, "the soft limit is higher than the hard one");
            }
            Some(limit) => {
                limits.retain(|other| other.name != limit.name);
                limits.push(limit);
            }
        }
    }
    limits
}

/// Limits of the classic flags, and of `--resource`, which comes last.
fn resources(findings: &mut Findings, classic: &[(&str, String)], texts: &[String]) -> ResourceLimits {
    let mut limits = ResourceLimits::default();
    for (key, value) in classic {
        if let Err(reason) = limits::set(&mut limits, key, value) {
            findings.invalid(&format!("--{key}"), value, reason);
        }
    }
    for field in texts.iter().flat_map(|text| fields_of(text)) {
        let Some((key, value)) = field.split_once('=') else {
            findings.invalid("--resource", &field, "expected LIMIT=VALUE");
            continue;
        };
        if let Err(reason) = limits::set(&mut limits, key.trim(), value) {
            findings.invalid("--resource", &field, reason);
        }
    }
    if let Err(reason) = limits::check(&limits) {
        findings.add("invalid-flag", reason);
    }
    limits
}

/// Splits at commas; a list of CPUs such as `cpuset-cpus=0,2` keeps its own.
fn fields_of(text: &str) -> Vec<String> {
    let mut fields: Vec<String> = Vec::new();
    for part in text.split(',') {
        let continues = part.starts_with(|char: char| char.is_ascii_digit()) && !part.contains('=');
        match fields.last_mut() {
            Some(last) if continues && last.starts_with("cpuset-") => {
                last.push(',');
                last.push_str(part);
            }
            _ => fields.push(part.trim_matches('"').to_owned()),
        }
    }
    fields
}

fn no_cache(findings: &mut Findings, flags: &Flags) -> NoCache {
    let stages: Vec<String> =
        flags.no_cache_filter.iter().filter(|stage| !stage.is_empty()).map(|stage| stage.to_lowercase()).collect();
    match (flags.no_cache.unwrap_or(false), stages.is_empty()) {
        (true, false) => {
            findings.add("invalid-flag", "`--no-cache` and `--no-cache-filter` cannot be used together");
            NoCache::All
        }
        (true, true) => NoCache::All,
        (false, false) => NoCache::Stages(stages),
        (false, true) => NoCache::Off,
    }
}

/// A name for the build: 25 characters of chance, as BuildKit's are.
fn new_id() -> String {
    let mut bytes = [0u8; 16];
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(bytes.len()) {
        // Early in the life of a machine; a build's name has to be different, not secret.
        bytes = (u128::from(crate::ui::now().0) << 32 | u128::from(std::process::id())).to_le_bytes();
    }
    let mut number = u128::from_le_bytes(bytes);
    let mut id = String::with_capacity(25);
    for _ in 0..25 {
        id.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
    }
    id
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;
    use expect_test::{Expect, expect};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    /// A context with a Dockerfile, a directory `sub`, and what else tests name.
    fn with_context<T>(test: impl FnOnce(&Path) -> T) -> T {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("Dockerfile"), "FROM scratch\n").expect("a file");
        std::fs::write(dir.path().join("args"), "# comment\nA=from file\n\n B=b \nFROM_ENV\n").expect("a file");
        std::fs::create_dir(dir.path().join("sub")).expect("a directory");
        test(dir.path())
    }

    /// Plans a build of such a context; `@/` in a flag stands for its path.
    fn try_plan(args: &[&str]) -> Result<Plan, (u8, String)> {
        with_context(|dir| {
            let dir = dir.to_str().expect("UTF-8");
            let mut line = vec!["build".to_owned()];
            line.extend(args.iter().map(|arg| arg.replace("@/", &format!("{dir}/"))));
            if !args.contains(&"--") {
                line.push(dir.to_owned());
            }
            line.retain(|arg| arg != "--");
            let line = Line::try_parse_from(line).map_err(|error| (2, error.to_string()))?;
            let env = |name: &str| (name == "FROM_ENV").then(|| OsString::from("env value"));
            plan(line.flags, &env).map_err(|failure| (failure.code, format!("{}\n", failure.error).replace(dir, "@")))
        })
    }

    fn accepted(args: &[&str]) -> Plan {
        try_plan(args).unwrap_or_else(|(_, message)| panic!("{args:?} is refused: {message}"))
    }

    /// F1-082, F1-083: classic spellings are those of `--resource`, which has the last word.
    #[test]
    fn f1_083_classic_limits_and_the_way_to_the_host() {
        let plan = accepted(&["-m", "1g", "--memory-swap=-1", "-c", "7", "--cpuset-cpus=0,2", "--cpu-quota", "5"]);
        let expected = ResourceLimits {
            memory_bytes: 1 << 30,
            memory_swap_bytes: -1,
            cpu_shares: 7,
            cpu_quota: 5,
            cpuset_cpus: "0,2".into(),
            ..ResourceLimits::default()
        };
        assert_eq!(plan.request.resources, expected);
        let plan = accepted(&["--memory=1g", "--resource=memory=2g,cpuset-mems=0", "--cpu-period=9"]);
        let resources = plan.request.resources;
        assert_eq!((resources.memory_bytes, resources.cpu_period, &*resources.cpuset_mems), (2 << 30, 9, "0"));
        for args in [["--cpu-shares", "many"], ["--memory", "-5"], ["--cpuset-mems", "x"], ["--memory-swap", "1g"]] {
            assert_eq!(try_plan(&args).map(|_| ()).map_err(|(code, _)| code), Err(2), "{args:?}");
        }
        let plan = accepted(&["--network=host", "--add-host", "h:host-gateway"]);
        assert_eq!(plan.request.extra_hosts, [("h".to_owned(), "127.0.0.1".to_owned())]);
    }

    #[test]
    fn every_flag_that_is_not_supported_is_refused_by_its_name() {
        for (args, flag) in [
            ("--cache-from type=local,src=x", "--cache-from"),
            ("--cache-to type=inline", "--cache-to"),
            ("--attest type=sbom", "--attest"),
            ("--provenance", "--provenance"),
            ("--provenance=mode=max", "--provenance"),
            ("--sbom=true", "--sbom"),
            ("--sbom=generator=x", "--sbom"),
            ("--builder remote", "--builder"),
            ("--backend buildkit", "--backend"),
            ("--on-failure shell", "--on-failure"),
            ("--squash", "--squash"),
            ("--security-opt x", "--security-opt"),
            ("--add-host a:host-gateway", "--add-host"),
        ] {
            let args: Vec<&str> = args.split(' ').collect();
            let (code, message) = try_plan(&args).expect_err("it is refused");
            assert_eq!(code, 2, "{args:?}");
            assert!(
                message.starts_with(&format!("`{flag}")) && message.contains("not supported"),
                "{args:?}: {message}"
            );
        }
    }

    #[test]
    fn values_that_ask_for_nothing_are_accepted() {
        accepted(&[
            "--pull=false",
            "--push=false",
            "--load=0",
            "--attest=type=provenance,disabled=true",
            "--provenance=false",
            "--sbom=false",
            "--sbom=disabled=true",
            "--backend=embedded",
            "--check=false",
            "--call=build",
            "--locked=false",
            "--rm",
            "--force-rm",
            "--compress",
            "--isolation=default",
            "--squash=false",
            "--builder=",
        ]);
    }

    #[test]
    fn every_value_that_cannot_be_understood_is_invalid_input() {
        for args in [
            "--platform linux/amd64/v1/x",
            "-t Upper/Case",
            "-t name@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "--label =x",
            "--annotation novalue",
            "--build-arg =x",
            "--build-arg-file @/missing",
            "--build-context nosource",
            "--build-context a=",
            "--build-context a=@/missing",
            "--build-context a=@/Dockerfile",
            "--add-host nothing",
            "--add-host a:b",
            "--ulimit nofile",
            "--ulimit nofile=x",
            "--ulimit nofile=2:1",
            "--ulimit what=1",
            "--shm-size lots",
            "--resource memory",
            "--resource memory=x",
            "--resource fun=1",
            "--resource cpuset-cpus=3-1",
            "--no-cache --no-cache-filter a",
            "--network bridge",
            "--call what",
            "--call check,format=xml",
            "--call check,fun=1",
            "--check --call outline",
            "--timeout never",
            "--timeout 0",
            "--userns maybe",
            "--progress fancy",
            "--quiet --progress=plain",
            "--quiet -o -",
            "-o - -o type=oci,dest=-",
            "-o type=what",
            "-o type=oci",
            "-o type=oci,dest=-,tar=false",
            "--build-arg SOURCE_DATE_EPOCH=-1",
            "--build-context a=s3://bucket/x",
            "-- s3://bucket/x",
            "-f @/missing",
            "--unknown",
            "-- @/missing",
            "-- @/Dockerfile",
            "-- @/sub",
            "--",
        ] {
            let args: Vec<&str> = args.split(' ').collect();
            let (code, message) = try_plan(&args).expect_err(&format!("{args:?} is refused"));
            assert_eq!(code, 2, "{args:?}: {message}");
        }
    }

    /// F1-011, F1-013, as buildx decides.
    #[test]
    fn contexts_may_be_addresses() {
        use DockerfileSource::{Context, Given, Url};
        for (args, remote, dockerfile, lends) in [
            (
                &["--", "https://h/a/b.git#main:sub"][..],
                "https://h/a/b.git#main:sub",
                Context("Dockerfile".into()),
                false,
            ),
            (&["--", "git@github.com:a/b"], "git@github.com:a/b", Context("Dockerfile".into()), true),
            (&["--", "ssh://git@h/a"], "ssh://git@h/a", Context("Dockerfile".into()), true),
            (&["--", "github.com/a/b"], "github.com/a/b", Context("Dockerfile".into()), false),
            (&["-f", "sub/D", "--", "https://h/c.tar"], "https://h/c.tar", Context("sub/D".into()), false),
            (&["-f", "https://h/D", "--", "git://h/a"], "git://h/a", Url("https://h/D".into()), false),
            (&["-f", "@/Dockerfile", "--", "git://h/a"], "git://h/a", Given, false),
        ] {
            let request = accepted(args).request;
            assert_eq!((request.remote_context.as_deref(), request.context), (Some(remote), None), "{args:?}");
            assert_eq!((request.dockerfile_source, request.session.lend_agent), (dockerfile, lends), "{args:?}");
        }
        let request = accepted(&["--build-context=a=git@h:b", "-f", "https://h/D"]).request;
        assert_eq!((request.dockerfile_source, request.session.lend_agent), (Url("https://h/D".into()), true));
        assert!(request.context.is_some());
    }

    fn check_request(args: &[&str], field: impl Fn(&BuildRequest) -> String, expected: &Expect) {
        expected.assert_eq(&field(&accepted(args).request));
    }

    #[test]
    fn build_args_come_from_file_flag_and_environment_in_this_order() {
        check_request(
            &["--build-arg-file=@/args", "--build-arg", "A=x=y", "--build-arg", "UNSET", "--build-arg=EMPTY="],
            |request| format!("{:?}", request.build_args),
            &expect![[r#"{"A": "x=y", "B": "b", "EMPTY": "", "FROM_ENV": "env value"}"#]],
        );
    }

    #[test]
    fn names_and_platforms_are_normalised_and_counted_once() {
        check_request(
            &[
                "-t",
                "a",
                "-t",
                "a:latest",
                "--tag=localhost:5000/b:1",
                "--platform",
                "x86_64,linux/arm64/v8",
                "--platform=amd64",
            ],
            |request| {
                let names = request
                    .tags
                    .iter()
                    .map(ToString::to_string)
                    .chain(request.platforms.iter().map(ToString::to_string));
                names.collect::<Vec<_>>().join(" ")
            },
            &expect!["docker.io/library/a:latest localhost:5000/b:1 linux/amd64 linux/arm64"],
        );
    }

    #[test]
    fn what_run_gets_is_parsed() {
        check_request(
            &[
                "--network=none",
                "--add-host=a:10.0.0.1",
                "--add-host=b=[::1]",
                "--add-host",
                "c:::2",
                "--ulimit",
                "nofile=1024:-1",
                "--shm-size=128m",
                "--cgroup-parent=/x",
                "--resource",
                "memory=512m,cpu-quota=50000,cpuset-cpus=0,2-3,cpu-shares=7",
                "--label=a=b=c",
                "--label=d",
            ],
            |request| {
                format!(
                    "{:?}\n{:?}\n{:?}\n{} {}\n{:?}\n{:?}",
                    request.network,
                    request.extra_hosts,
                    request.ulimits,
                    request.shm_size_bytes,
                    request.cgroup_parent,
                    request.resources,
                    request.labels
                )
            },
            &expect![[r#"
                None
                [("a", "10.0.0.1"), ("b", "::1"), ("c", "::2")]
                [Limit { name: "nofile", soft: 1024, hard: -1 }]
                134217728 /x
                ResourceLimits { memory_bytes: 536870912, memory_swap_bytes: 0, cpu_shares: 7, cpu_period: 0, cpu_quota: 50000, cpuset_cpus: "0,2-3", cpuset_mems: "" }
                {"a": "b=c", "d": ""}"#]],
        );
    }

    #[test]
    fn outputs_and_contexts_are_absolute() {
        let plan = accepted(&["-o", "out", "--build-context", "sub=@/sub", "-o", "type=oci,dest=x.tar"]);
        assert!(matches!(&plan.request.outputs[0], Output::Local { dest, .. } if dest.is_absolute()));
        assert!(
            matches!(&plan.request.outputs[1], Output::Oci { dest: OutputDest::Path(dest), .. } if dest.is_absolute())
        );
        assert!(matches!(&plan.request.named_contexts["sub"], ContextSource::Local { path } if path.is_absolute()));
        assert!(plan.request.context.is_some_and(|context| context.is_absolute()));
    }

    /// F2-020 to F2-022.
    #[test]
    fn push_and_load_are_short_for_outputs() {
        let shown = |args: &[&str]| -> Vec<String> {
            let plan = accepted(args);
            let shown = plan.request.outputs.iter().map(|output| match output {
                Output::Image { store, push, .. } => format!("image store={store} push={push}"),
                Output::Load { target: LoadTarget::Sockets(sockets), .. } => format!("load {}", sockets.len()),
                Output::Load { target: LoadTarget::Containerd(to), .. } => format!("load containerd {}", to.namespace),
                Output::Oci { .. } => "oci".to_owned(),
                other => format!("{other:?}"),
            });
            shown.collect()
        };
        for (args, expected) in [
            (&["--push", "-t", "a"][..], &["image store=true push=true"][..]),
            (&["--push", "-t", "a", "-o", "type=image"], &["image store=true push=true"]),
            (&["--push", "-o", "type=registry,name=a"], &["image store=false push=true"]),
            (&["--push", "-t", "a", "-o", "type=oci,dest=x"], &["oci", "image store=true push=true"]),
            (&["--load"], &["load 2"]),
            (&["--load", "-o", "type=docker"], &["load 2"]),
            (&["-o", "type=image,push=true,store=false,name=a"], &["image store=false push=true"]),
            (&["--push=false", "--load=false"], &[]),
        ] {
            assert_eq!(shown(args), expected, "{args:?}");
        }
    }

    /// D-17.
    #[test]
    fn a_lock_file_of_the_context_is_taken_and_locked_needs_one() {
        with_context(|dir| {
            let plan_of = |args: &[&str]| {
                let all = ["build"].into_iter().chain(args.iter().copied()).map(std::ffi::OsStr::new);
                let line = Line::parse_from(all.chain([dir.as_os_str()]));
                plan(line.flags, &|_: &str| None)
            };
            let error = plan_of(&["--locked"]).expect_err("there is none").error.to_string();
            assert!(error.contains("build-engine.lock"), "{error}");
            let images = lock_file::Images::from([("docker.io/library/a:1".to_owned(), digest())]);
            lock_file::write(dir, &images).expect("written");
            let request = plan_of(&["--locked", "--pull"]).expect("a plan").request;
            assert_eq!((request.lock, request.locked, request.pull), (images, true, true));
            std::fs::write(dir.join(lock_file::NAME), "{}").expect("written");
            assert!(plan_of(&[]).is_err(), "a lock is never ignored");
        });
    }

    fn digest() -> build_engine_oci::Digest {
        build_engine_oci::Digest::sha256(b"x")
    }

    #[test]
    fn whoever_wants_a_digest_gets_an_image() {
        for args in [["-q"], ["--iidfile=x"], ["--metadata-file=x"]] {
            assert!(matches!(accepted(&args).request.outputs[..], [Output::Image { .. }]), "{args:?}");
        }
        assert!(accepted(&["-q", "-t", "a"]).request.outputs.is_empty());
        assert!(accepted(&[]).request.outputs.is_empty());
    }

    #[test]
    fn the_last_of_several_single_values_wins() {
        let plan = accepted(&["--target=a", "--target", "b", "--no-cache", "--no-cache=false"]);
        assert_eq!((plan.request.target.as_deref(), plan.request.no_cache), (Some("b"), NoCache::Off));
        let plan = accepted(&["--no-cache-filter", "A,b", "--timeout=1m30s", "--userns=host"]);
        assert_eq!(plan.request.no_cache, NoCache::Stages(vec!["a".into(), "b".into()]));
        assert_eq!((plan.timeout, plan.user_namespace), (Some(Duration::from_secs(90)), UserNamespace::Host));
    }

    #[test]
    fn the_epoch_is_a_build_argument_too() {
        let given = accepted(&["--build-arg=SOURCE_DATE_EPOCH=1700000000"]);
        assert_eq!(given.request.source_date_epoch, Some(1_700_000_000));
        with_context(|dir| {
            let line = Line::parse_from(["build".as_ref(), dir.as_os_str()]);
            let env = |name: &str| (name == "SOURCE_DATE_EPOCH").then(|| OsString::from("12"));
            let plan = plan(line.flags, &env).expect("a plan");
            assert_eq!(plan.request.source_date_epoch, Some(12));
            assert_eq!(plan.request.build_args["SOURCE_DATE_EPOCH"], "12");
        });
    }

    #[test]
    fn the_dockerfile_is_looked_for_in_the_context_and_f_starts_here() {
        let plan = accepted(&[]);
        assert_eq!(
            (plan.request.dockerfile_name.as_str(), plan.request.dockerfile.as_str()),
            ("Dockerfile", "FROM scratch\n")
        );
        with_context(|dir| {
            std::fs::rename(dir.join("Dockerfile"), dir.join("dockerfile")).expect("renamed");
            let line = Line::parse_from(["build".as_ref(), dir.as_os_str()]);
            assert_eq!(plan_of(line).expect("a plan").request.dockerfile_name, "dockerfile");
            std::fs::rename(dir.join("dockerfile"), dir.join("Containerfile")).expect("renamed");
            let line = Line::parse_from(["build".as_ref(), dir.as_os_str()]);
            let failure = plan_of(line).expect_err("it is refused");
            assert!(failure.error.reports[0].hint.as_deref().is_some_and(|hint| hint.contains("Containerfile")));
            let line = Line::parse_from(["build".as_ref(), "-f".as_ref(), "Containerfile".as_ref(), dir.as_os_str()]);
            let failure = plan_of(line).expect_err("it is refused");
            assert!(failure.error.reports[0].hint.as_deref().is_some_and(|hint| hint.contains("current directory")));
        });
    }

    fn plan_of(line: Line) -> Result<Plan, Failure> {
        plan(line.flags, &|_| None)
    }

    /// Security plan D13.
    #[test]
    fn d13_a_dockerfile_outside_of_the_context_must_be_named() {
        with_context(|dir| {
            let elsewhere = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(elsewhere.path(), "FROM scratch\n").expect("written");
            std::fs::remove_file(dir.join("Dockerfile")).expect("removed");
            std::os::unix::fs::symlink(elsewhere.path(), dir.join("Dockerfile")).expect("a link");
            let failure = plan_of(Line::parse_from(["build".as_ref(), dir.as_os_str()])).expect_err("it is refused");
            assert!(failure.error.to_string().contains("leads out of the context"), "{}", failure.error);
            let named = dir.join("Dockerfile");
            plan_of(Line::parse_from(["build".as_ref(), "-f".as_ref(), named.as_os_str(), dir.as_os_str()]))
                .expect("it is taken");
            std::fs::rename(dir.join("args"), dir.join("real")).expect("renamed");
            std::fs::remove_file(&named).expect("removed");
            std::os::unix::fs::symlink("real", &named).expect("a link");
            assert!(
                plan_of(Line::parse_from(["build".as_ref(), dir.as_os_str()])).is_ok(),
                "a link within the context"
            );
            std::fs::remove_file(&named).expect("removed");
            std::fs::create_dir(&named).expect("a directory");
            assert!(plan_of(Line::parse_from(["build".as_ref(), dir.as_os_str()])).is_err());
        });
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let (_, message) = try_plan(&["--squash", "-t", "A", "--ulimit=x"]).expect_err("it is refused");
        assert_eq!(message.lines().count(), 3, "{message}");
    }

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, expected) in [
            ("64", Ok(64)),
            ("1k", Ok(1024)),
            ("128MB", Ok(128 << 20)),
            ("1.5GiB", Ok(3 << 29)),
            ("2 g", Ok(2 << 30)),
            ("", Err(())),
            ("m", Err(())),
            ("-1", Err(())),
            ("1x", Err(())),
            ("99999999999p", Err(())),
        ] {
            assert_eq!(flags::byte_size(text).map_err(|_| ()), expected, "{text:?}");
        }
    }

    #[test]
    fn ids_differ_and_are_25_characters_long() {
        let (one, two) = (new_id(), new_id());
        assert_eq!((one.len(), one == two), (25, false));
    }
}
