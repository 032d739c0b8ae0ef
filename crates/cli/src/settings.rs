//! Settings: what the user configured, gathered once. Defaults < file < environment < flags.
//!
//! This is the only place of the project that reads the environment; it reads the variables that it names and no others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use build_engine_engine::{
    AuthFiles, Containerd, ExitKind, LoadTarget, NetworkLimits, Proxies, RegistryHost, RegistrySettings, Report,
    Variables,
};
use serde::Deserialize;

use crate::errors::{Failure, Style};

/// Looks up an environment variable.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The settings that hold for every command.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The store's directory, absolute.
    pub(crate) root: PathBuf,
    /// Progress display, where one was chosen.
    pub(crate) progress: Option<ProgressChoice>,
    /// Whether standard error takes colours.
    pub(crate) colour: bool,
    /// Whether standard error is a terminal that understands control sequences.
    pub(crate) terminal: bool,
    /// Whether developers are listening (`--debug`).
    pub(crate) debug: bool,
    /// How registries are spoken to.
    pub(crate) registries: RegistrySettings,
    /// Where credentials for them stand.
    pub(crate) auth: AuthFiles,
}

/// The value of `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgressChoice {
    /// `tty` on a terminal, `plain` elsewhere.
    Auto,
    /// Exactly this one.
    Only(ProgressMode),
}

/// Which display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgressMode {
    /// A live view.
    Tty,
    /// Lines.
    Plain,
    /// JSON lines.
    RawJson,
    /// Nothing.
    Quiet,
}

impl FromStr for ProgressChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tty" => Ok(Self::Only(ProgressMode::Tty)),
            "plain" => Ok(Self::Only(ProgressMode::Plain)),
            "rawjson" => Ok(Self::Only(ProgressMode::RawJson)),
            "quiet" | "none" => Ok(Self::Only(ProgressMode::Quiet)),
            _ => Err("expected auto, tty, plain, rawjson, quiet or none".into()),
        }
    }
}

/// The settings file. Unknown keys are refused: a setting that is misspelt must not be ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    root: Option<PathBuf>,
    progress: Option<String>,
    #[serde(default)]
    registries: BTreeMap<String, RegistryHost>,
    #[serde(default)]
    network: NetworkLimits,
}

/// Flags that every command has.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct GlobalFlags {
    /// Directory of the store [env: BUILD_ENGINE_ROOT]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) root: Option<PathBuf>,
    /// Do not verify the certificate of this registry; speak plain HTTP if it does not speak TLS
    #[arg(long, global = true, value_name = "HOST[:PORT]", help_heading = "Global options")]
    pub(crate) insecure_registry: Vec<String>,
    /// Write what developers want to know to standard error
    #[arg(short = 'D', long, global = true, help_heading = "Global options")]
    pub(crate) debug: bool,
}

impl Settings {
    /// Gathers the settings.
    ///
    /// # Errors
    /// A file or variable that cannot be understood, by name.
    pub(crate) fn gather(flags: &GlobalFlags, env: Environment<'_>, is_root: bool) -> Result<Self, Failure> {
        let file = read_file(env, is_root)?;
        let root = match flags.root.clone().or_else(|| set(env, "BUILD_ENGINE_ROOT").map(PathBuf::from)).or(file.root) {
            Some(root) => root,
            None => default_root(env, is_root)?,
        };
        let root = std::path::absolute(&root).map_err(|error| {
            Failure::io(format!("cannot use `{}` as the store's directory", root.display()), &error)
        })?;
        let progress = match set(env, "BUILDKIT_PROGRESS") {
            Some(value) => Some(parse_progress(&value.to_string_lossy(), "BUILDKIT_PROGRESS")?),
            None => file.progress.map(|value| parse_progress(&value, "setting `progress`")).transpose()?,
        };
        let terminal =
            rustix::termios::isatty(rustix::stdio::stderr()) && set(env, "TERM").is_none_or(|term| term != "dumb");
        let colour = terminal && set(env, "NO_COLOR").is_none();
        let mut registries = RegistrySettings {
            hosts: file.registries,
            proxies: proxies(env),
            ca_bundle: set(env, "SSL_CERT_FILE").map(PathBuf::from),
            limits: file.network,
        };
        for host in &flags.insecure_registry {
            registries.hosts.entry(host.clone()).or_default().insecure = true;
        }
        Ok(Self { root, progress, colour, terminal, debug: flags.debug, registries, auth: auth_files(env) })
    }

    /// How text on standard error is shown.
    pub(crate) fn style(&self) -> Style {
        style(self.colour)
    }

    /// The display to use: the flag's choice, else the settings'.
    ///
    /// # Errors
    /// `tty` was asked for by name and standard error is no terminal.
    pub(crate) fn progress_mode(&self, flag: Option<ProgressChoice>) -> Result<ProgressMode, Failure> {
        match flag.or(self.progress).unwrap_or(ProgressChoice::Auto) {
            // Messages of developers would tear the live view apart.
            ProgressChoice::Auto if self.terminal && !self.debug => Ok(ProgressMode::Tty),
            ProgressChoice::Auto => Ok(ProgressMode::Plain),
            ProgressChoice::Only(ProgressMode::Tty) if !self.terminal => {
                Err(Failure::input("no-terminal", "`--progress=tty` needs a terminal on standard error")
                    .hint("use `--progress=auto` or `--progress=plain`"))
            }
            ProgressChoice::Only(mode) => Ok(mode),
        }
    }
}

/// The style for messages before the settings are known.
pub(crate) fn early_style(env: Environment<'_>) -> Style {
    style(
        rustix::termios::isatty(rustix::stdio::stderr())
            && set(env, "TERM").is_none_or(|term| term != "dumb")
            && set(env, "NO_COLOR").is_none(),
    )
}

fn style(colour: bool) -> Style {
    let width = rustix::termios::tcgetwinsize(rustix::stdio::stderr()).ok().map_or(0, |size| usize::from(size.ws_col));
    // Where nobody looks through a window of some width, lines stay whole.
    Style { colour, width: if width == 0 { 1000 } else { width } }
}

/// A variable that is set and not empty.
pub(crate) fn set(env: Environment<'_>, name: &str) -> Option<OsString> {
    env(name).filter(|value| !value.is_empty())
}

fn parse_progress(value: &str, name: &str) -> Result<ProgressChoice, Failure> {
    value.parse().map_err(|reason| {
        Failure::input("invalid-setting", format!("{name}: `{value}` is not a progress display: {reason}"))
    })
}

/// What git is started with; everything else of the environment stays here.
pub(crate) fn for_programs(env: Environment<'_>) -> Variables {
    const NAMES: &[&str] = &[
        "PATH",
        "USER",
        "LOGNAME",
        "TMPDIR",
        "SSH_AUTH_SOCK",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "GIT_SSL_CAINFO",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ];
    Variables::new(NAMES.iter().filter_map(|name| Some((name.into(), env(name)?))))
}

fn default_root(env: Environment<'_>, is_root: bool) -> Result<PathBuf, Failure> {
    if is_root {
        return Ok("/var/lib/build-engine".into());
    }
    directory(env, "XDG_DATA_HOME", ".local/share").map(|base| base.join("build-engine")).ok_or_else(|| {
        Failure::input("no-store", "there is no directory for the store: neither XDG_DATA_HOME nor HOME is set")
            .hint("name one with `--root DIR` or BUILD_ENGINE_ROOT")
    })
}

/// The proxies of the usual variables, in either case of letters, as curl reads them.
fn proxies(env: Environment<'_>) -> Proxies {
    let of = |name: &str| {
        set(env, &name.to_lowercase()).or_else(|| set(env, name)).map(|value| value.to_string_lossy().into_owned())
    };
    let all = of("ALL_PROXY");
    Proxies { http: of("HTTP_PROXY").or_else(|| all.clone()), https: of("HTTPS_PROXY").or(all), no: of("NO_PROXY") }
}

/// Where docker and podman keep credentials, in the order in which they are looked at.
fn auth_files(env: Environment<'_>) -> AuthFiles {
    let path = |name: &str| set(env, name).map(PathBuf::from);
    let home = path("HOME");
    let below_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
    let files = [
        path("REGISTRY_AUTH_FILE"),
        path("DOCKER_CONFIG").map(|dir| dir.join("config.json")).or_else(|| below_home(".docker/config.json")),
        path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        directory(env, "XDG_CONFIG_HOME", ".config").map(|dir| dir.join("containers/auth.json")),
    ];
    let path = set(env, "PATH").map(|value| std::env::split_paths(&value).filter(|dir| dir.is_absolute()).collect());
    AuthFiles { files: files.into_iter().flatten().collect(), path: path.unwrap_or_default() }
}

/// The socket of the user's SSH agent.
pub(crate) fn ssh_agent(env: Environment<'_>) -> Option<PathBuf> {
    set(env, "SSH_AUTH_SOCK").map(PathBuf::from)
}

/// The local daemon that was named, else the sockets of Docker, then of Podman.
///
/// # Errors
/// A named one that is no socket of this machine.
pub(crate) fn load_target(env: Environment<'_>) -> Result<LoadTarget, Box<Report>> {
    for name in ["DOCKER_HOST", "CONTAINER_HOST"] {
        if let Some(value) = set(env, name) {
            let value = value.to_string_lossy().into_owned();
            return match value.strip_prefix("unix://") {
                Some(path) => Ok(LoadTarget::Sockets(vec![path.into()])),
                None => {
                    let message =
                        format!("{name}: images can be loaded through a local socket only, not through `{value}`");
                    let hint = "unset it, or name a socket: unix://PATH; a registry reaches other machines";
                    Err(Box::new(Report::new("invalid-setting", message).hint(hint)))
                }
            };
        }
    }
    if let Some(address) = set(env, "CONTAINERD_ADDRESS") {
        let text = |name, default: &str| {
            set(env, name).map_or_else(|| default.to_owned(), |value| value.to_string_lossy().into_owned())
        };
        let path = address.to_str().and_then(|address| address.strip_prefix("unix://"));
        let path = path.map_or_else(|| PathBuf::from(&address), PathBuf::from);
        if !path.is_absolute() {
            let message = format!("CONTAINERD_ADDRESS: `{}` is not the path of a socket", path.display());
            return Err(Box::new(
                Report::new("invalid-setting", message).hint("give an absolute path, or unix://PATH"),
            ));
        }
        return Ok(LoadTarget::Containerd(Containerd {
            address: path,
            namespace: text("CONTAINERD_NAMESPACE", "default"),
            snapshotter: text("CONTAINERD_SNAPSHOTTER", "overlayfs"),
        }));
    }
    let runtime = set(env, "XDG_RUNTIME_DIR").map(PathBuf::from);
    let below = |rest: &str| runtime.as_ref().map(|dir| dir.join(rest));
    let sockets = [
        Some("/var/run/docker.sock".into()),
        below("docker.sock"),
        below("podman/podman.sock"),
        Some("/run/podman/podman.sock".into()),
    ];
    Ok(LoadTarget::Sockets(sockets.into_iter().flatten().collect()))
}

/// A directory of the XDG base directory specification; relative paths are to be ignored, says that specification.
fn directory(env: Environment<'_>, variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name| set(env, name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
}

fn read_file(env: Environment<'_>, is_root: bool) -> Result<File, Failure> {
    let named = set(env, "BUILD_ENGINE_CONFIG").map(PathBuf::from);
    let is_named = named.is_some();
    let path = match directory(env, "XDG_CONFIG_HOME", ".config") {
        _ if is_named => named.unwrap_or_default(),
        Some(base) if !is_root || set(env, "XDG_CONFIG_HOME").is_some() => base.join("build-engine/config.json"),
        _ => PathBuf::from("/etc/build-engine/config.json"),
    };
    match std::fs::read(&path) {
        Ok(bytes) => parse_file(&path, &bytes),
        Err(error)
            if !is_named
                && matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Ok(File::default())
        }
        Err(error) => Err(Failure::io(format!("cannot read the settings file `{}`", path.display()), &error)),
    }
}

fn parse_file(path: &Path, bytes: &[u8]) -> Result<File, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        let report =
            Report::new("invalid-setting", format!("the settings file `{}` cannot be understood", path.display()));
        Failure::new(ExitKind::Input, report.caused_by(&error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(flags: &GlobalFlags, variables: &[(&str, &str)], is_root: bool) -> Result<Settings, String> {
        let env = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Settings::gather(flags, &env, is_root).map_err(|failure| failure.error.to_string())
    }

    #[test]
    fn a_daemon_is_the_one_that_is_named() {
        let named = [
            ("CONTAINERD_ADDRESS", "unix:///c"),
            ("CONTAINERD_NAMESPACE", "k8s.io"),
            ("CONTAINERD_SNAPSHOTTER", "btrfs"),
        ];
        for (variables, expected) in [
            (&[][..], "sockets 2"),
            (&[("XDG_RUNTIME_DIR", "/run/user/1")], "sockets 4"),
            (&[("DOCKER_HOST", "unix:///d"), ("CONTAINERD_ADDRESS", "/c")], "sockets 1"),
            (&[("CONTAINERD_ADDRESS", "/c")], "/c default overlayfs"),
            (&named, "/c k8s.io btrfs"),
            (&[("CONTAINER_HOST", "ssh://host/p")], "CONTAINER_HOST: images can be loaded through a local socket only"),
            (&[("CONTAINERD_ADDRESS", "tcp://host")], "CONTAINERD_ADDRESS: `tcp://host` is not the path of a socket"),
        ] {
            let env =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            let shown = match load_target(&env) {
                Ok(LoadTarget::Sockets(sockets)) => format!("sockets {}", sockets.len()),
                Ok(LoadTarget::Containerd(to)) => {
                    format!("{} {} {}", to.address.display(), to.namespace, to.snapshotter)
                }
                Err(report) => report.message,
            };
            assert!(shown.starts_with(expected), "{variables:?}: {shown}");
        }
    }

    #[test]
    fn the_root_comes_from_flag_then_environment_then_file_then_default() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().to_str().expect("UTF-8");
        std::fs::create_dir(dir.path().join("build-engine")).expect("a directory");
        std::fs::write(dir.path().join("build-engine/config.json"), r#"{"root": "/from/file", "progress": "plain"}"#)
            .expect("a file");
        let flag = GlobalFlags { root: Some("/from/flag".into()), ..GlobalFlags::default() };
        let none = GlobalFlags::default();
        let file = ("XDG_CONFIG_HOME", config);
        let (variable, home) = (("BUILD_ENGINE_ROOT", "/from/env"), ("HOME", "/home/u"));
        for (flags, variables, is_root, expected) in [
            (&flag, vec![file, variable, home], false, "/from/flag"),
            (&none, vec![file, variable, home], false, "/from/env"),
            (&none, vec![file, home], false, "/from/file"),
            (&none, vec![home], false, "/home/u/.local/share/build-engine"),
            (&none, vec![home, ("XDG_DATA_HOME", "/data")], false, "/data/build-engine"),
            (&none, vec![home, ("XDG_DATA_HOME", "relative")], false, "/home/u/.local/share/build-engine"),
            (&none, vec![("XDG_CONFIG_HOME", "/nonexistent")], true, "/var/lib/build-engine"),
        ] {
            assert_eq!(gather(flags, &variables, is_root).map(|settings| settings.root), Ok(expected.into()));
        }
        let settings = gather(&none, &[file, home], false).expect("settings");
        assert_eq!(settings.progress, Some(ProgressChoice::Only(ProgressMode::Plain)));
    }

    #[test]
    fn what_cannot_be_understood_is_refused_by_name() {
        let none = GlobalFlags::default();
        let error =
            gather(&none, &[("HOME", "/nonexistent"), ("BUILDKIT_PROGRESS", "fancy")], false).expect_err("refused");
        assert!(error.contains("BUILDKIT_PROGRESS") && error.contains("`fancy`"), "{error}");
        let error = gather(&none, &[], false).expect_err("refused");
        assert!(error.contains("HOME"), "{error}");
        assert!(parse_file(Path::new("x"), br#"{"rot": "/"}"#).is_err());
    }

    #[test]
    fn registries_come_from_the_file_and_the_usual_variables() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("settings.json");
        let text =
            r#"{"registries": {"reg.example": {"mirrors": ["m:5000"], "ca": ["/ca.pem"]}}, "network": {"retries": 1}}"#;
        std::fs::write(&config, text).expect("a file");
        let config = config.to_str().expect("UTF-8");
        let flags = GlobalFlags { insecure_registry: vec!["reg.test:5000".into()], ..GlobalFlags::default() };
        let settings = gather(
            &flags,
            &[
                ("HOME", "/home/u"),
                ("BUILD_ENGINE_CONFIG", config),
                ("https_proxy", "http://p:3128"),
                ("ALL_PROXY", "http://all:1"),
                ("NO_PROXY", "x"),
                ("PATH", "/bin:relative:/usr/bin"),
                ("REGISTRY_AUTH_FILE", "/auth.json"),
            ],
            false,
        )
        .expect("settings");
        assert_eq!(settings.registries.hosts["reg.example"].mirrors, ["m:5000"]);
        assert!(settings.registries.hosts["reg.test:5000"].insecure);
        assert_eq!((settings.registries.limits.retries, settings.registries.limits.connect_seconds), (1, 10.0));
        let proxies = &settings.registries.proxies;
        assert_eq!(proxies.http.as_deref(), Some("http://all:1"));
        assert_eq!((proxies.https.as_deref(), proxies.no.as_deref()), (Some("http://p:3128"), Some("x")));
        let files: Vec<_> = settings.auth.files.iter().map(|file| file.display().to_string()).collect();
        let expected = ["/auth.json", "/home/u/.docker/config.json", "/home/u/.config/containers/auth.json"];
        assert_eq!(files, expected);
        assert_eq!(settings.auth.path, [PathBuf::from("/bin"), PathBuf::from("/usr/bin")]);
        assert!(gather(&flags, &[("HOME", "/h"), ("BUILD_ENGINE_CONFIG", "/nonexistent")], false).is_err());
        assert!(parse_file(Path::new("x"), br#"{"registries": {"h": {"mirror": []}}}"#).is_err());
    }

    #[test]
    fn a_display_is_chosen_by_flag_then_settings_then_terminal() {
        let settings = |terminal, debug, progress| Settings {
            root: "/".into(),
            progress,
            colour: false,
            terminal,
            debug,
            registries: RegistrySettings::default(),
            auth: AuthFiles::default(),
        };
        let plain = ProgressChoice::Only(ProgressMode::Plain);
        let tty = ProgressChoice::Only(ProgressMode::Tty);
        let mode = |settings: Settings, flag| settings.progress_mode(flag).ok();
        assert_eq!(mode(settings(true, false, None), None), Some(ProgressMode::Tty));
        assert_eq!(mode(settings(true, true, None), None), Some(ProgressMode::Plain));
        assert_eq!(mode(settings(false, false, None), None), Some(ProgressMode::Plain));
        assert_eq!(mode(settings(true, false, Some(plain)), None), Some(ProgressMode::Plain));
        assert_eq!(mode(settings(true, false, Some(plain)), Some(tty)), Some(ProgressMode::Tty));
        assert_eq!(mode(settings(false, false, None), Some(tty)), None);
    }
}
