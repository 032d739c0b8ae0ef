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
mod tests;
