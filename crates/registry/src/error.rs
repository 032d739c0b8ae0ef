//! What can go wrong with a registry.
//!
//! An [`Error::Operation`] says what was being done and to which image or blob; its source says which host failed and
//! how. Addresses in messages are redacted: neither user names, passwords nor queries (they may be signatures) appear.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use build_engine_oci::Digest;

/// A cause that comes from another library.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Which kind of failure it is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Settings, or something else that was given, are not right.
    Input,
    /// The registry or the network does not give it.
    Source,
    /// Content is not what it claims to be.
    Integrity,
    /// A limit was exceeded.
    Limit,
    /// The local disk.
    Io,
    /// It is not allowed.
    Denied,
}

/// A failure of the registry client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Our own content cannot be read.
    #[error("cannot read what is to be pushed")]
    Content(#[source] io::Error),
    /// A setting cannot be used.
    #[error("{what}")]
    Settings {
        /// The setting, and what is wrong with it.
        what: String,
        /// Why.
        source: Option<Cause>,
    },
    /// A file with credentials cannot be used.
    #[error("cannot use the credentials in `{}`: {reason}", path.display())]
    AuthFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; nothing of its content.
        reason: String,
    },
    /// A credential helper cannot be used.
    #[error("cannot use the credential helper `{helper}`: {reason}")]
    Helper {
        /// Its full name.
        helper: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was being done when the source of this error occurred.
    #[error("cannot {what}")]
    Operation {
        /// The operation with its host, image and digest.
        what: String,
        /// The failure itself.
        source: Box<Error>,
    },
    /// No connection.
    #[error("cannot connect to `{host}`")]
    Connect {
        /// Host and port.
        host: String,
        /// Why.
        source: Cause,
    },
    /// There is no such host.
    #[error("there is no host named `{host}`")]
    UnknownHost {
        /// Host and port.
        host: String,
        /// Why.
        source: Cause,
    },
    /// The host answers, but not in TLS.
    #[error("`{host}` does not speak TLS")]
    NotTls {
        /// Host and port.
        host: String,
    },
    /// The certificate of the host is not trusted.
    #[error("the certificate of `{host}` is not trusted")]
    Certificate {
        /// Host and port.
        host: String,
        /// Why.
        source: Cause,
    },
    /// TLS could not be agreed upon for another reason.
    #[error("cannot speak TLS with `{host}`")]
    Tls {
        /// Host and port.
        host: String,
        /// Why.
        source: Cause,
    },
    /// An answer did not come in time.
    #[error("`{host}` did not answer within {seconds} s ({phase})")]
    Timeout {
        /// Host and port.
        host: String,
        /// What was waited for.
        phase: &'static str,
        /// How long.
        seconds: f64,
    },
    /// A transfer moves, but hardly.
    #[error("`{host}` is too slow: fewer than {min_bytes} bytes in {seconds} s")]
    Slow {
        /// Host and port.
        host: String,
        /// What was asked for at least.
        min_bytes: u64,
        /// In which time.
        seconds: f64,
    },
    /// A connection broke.
    #[error("the connection to `{host}` broke")]
    Broken {
        /// Host and port.
        host: String,
        /// Why.
        source: Cause,
    },
    /// The host sends us to a place where we do not go.
    #[error("`{host}` redirects to `{target}`, which is refused: {reason}")]
    Redirect {
        /// Who sent us there.
        host: String,
        /// Where to, redacted.
        target: String,
        /// Why not.
        reason: &'static str,
    },
    /// A host is nearer to this machine than whoever named it may lead us.
    #[error("`{host}` is refused: {reason}")]
    NearAddress {
        /// Host and port.
        host: String,
        /// The address, and what it is.
        reason: String,
    },
    /// There is no such thing.
    #[error("`{host}` answered 404 Not Found{detail}")]
    NotFound {
        /// Host and port.
        host: String,
        /// What the host says about it.
        detail: String,
    },
    /// This user may not have it, or it does not exist.
    #[error("`{host}` answered {status}{detail}")]
    Denied {
        /// Host and port.
        host: String,
        /// 401 or 403.
        status: u16,
        /// What the host says about it.
        detail: String,
    },
    /// Another status than those that were expected.
    #[error("`{host}` answered {status}{detail}")]
    Status {
        /// Host and port.
        host: String,
        /// The status.
        status: u16,
        /// What the host says about it.
        detail: String,
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
    },
    /// The token service does not accept the credentials.
    #[error("`{realm}` does not accept the credentials for `{host}` ({status}{detail})")]
    Login {
        /// The registry.
        host: String,
        /// Host of its token service.
        realm: String,
        /// The status.
        status: u16,
        /// What the service says about it.
        detail: String,
    },
    /// The credentials were not sent to a token service elsewhere, and without them it is not enough.
    #[error("`{host}` sends its clients to `{realm}` for tokens, which is not given the credentials of `{host}`")]
    ForeignRealm {
        /// The registry.
        host: String,
        /// Host of its token service.
        realm: String,
    },
    /// The registry names a token service that is not asked at all.
    #[error("`{host}` sends its clients to `{realm}` for tokens, which is refused: {reason}")]
    RealmRefused {
        /// The registry.
        host: String,
        /// Host of its token service.
        realm: String,
        /// Why.
        reason: &'static str,
    },
    /// An answer that makes no sense.
    #[error("`{host}` gave an answer that makes no sense: {reason}")]
    Protocol {
        /// Host and port.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest in a format that was given up in 2016.
    #[error("`{host}` has this image only as a manifest of schema version 1, which is not supported")]
    Schema1 {
        /// Host and port.
        host: String,
    },
    /// A digest that cannot be verified here.
    #[error("{digest} cannot be verified: only sha256 is supported")]
    Algorithm {
        /// The digest.
        digest: Digest,
    },
    /// An identifier is not well formed.
    #[error("`{host}` gave {what}")]
    WrongFormat {
        /// Host and port.
        host: String,
        /// What came, escaped, and what it is not.
        what: String,
    },
    /// Content has another digest.
    #[error("`{host}` gave {actual} for {expected}")]
    WrongDigest {
        /// Host and port.
        host: String,
        /// What was asked for or sent.
        expected: Digest,
        /// What came, escaped.
        actual: String,
    },
    /// Content has another size.
    #[error("`{host}` gave {actual} for {digest}, which has {expected} bytes")]
    WrongSize {
        /// Host and port.
        host: String,
        /// The content.
        digest: Digest,
        /// The size that it must have.
        expected: u64,
        /// What came instead, in words.
        actual: String,
    },
    /// A document is declared to be something else.
    #[error("`{host}` declares {digest} to be `{actual}`, not `{expected}`")]
    WrongType {
        /// Host and port.
        host: String,
        /// The document.
        digest: Digest,
        /// The media type of its descriptor.
        expected: String,
        /// The one it came with, escaped.
        actual: String,
    },
    /// A pushed blob is not there afterwards.
    #[error("`{host}` says that it took {digest}, but does not have it")]
    NotStored {
        /// Host and port.
        host: String,
        /// The blob.
        digest: Digest,
    },
    /// A document is too large.
    #[error("{what} has {size_bytes} bytes; at most {limit_bytes} are read")]
    TooLarge {
        /// Which one.
        what: String,
        /// Its size, or as much as is known of it.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
}

impl Error {
    /// Which kind of failure it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Content(_) => Kind::Io,
            Self::Settings { .. } | Self::AuthFile { .. } | Self::Helper { .. } => Kind::Input,
            Self::Operation { source, .. } => source.kind(),
            Self::Connect { .. }
            | Self::UnknownHost { .. }
            | Self::NotTls { .. }
            | Self::Certificate { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Slow { .. }
            | Self::Broken { .. }
            | Self::Redirect { .. }
            | Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Status { .. }
            | Self::Login { .. }
            | Self::ForeignRealm { .. }
            | Self::RealmRefused { .. }
            | Self::Protocol { .. }
            | Self::Schema1 { .. } => Kind::Source,
            Self::Algorithm { .. }
            | Self::WrongFormat { .. }
            | Self::WrongDigest { .. }
            | Self::WrongSize { .. }
            | Self::WrongType { .. }
            | Self::NotStored { .. } => Kind::Integrity,
            Self::TooLarge { .. } => Kind::Limit,
            Self::NearAddress { .. } => Kind::Denied,
        }
    }

    /// Whether the registry said that there is no such thing (or that it is hidden from this user).
    pub fn is_not_found(&self) -> bool {
        matches!(self.root(), Self::NotFound { .. } | Self::Denied { .. })
    }

    /// Whether nobody answered, or hardly.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self.root(), Self::Connect { .. } | Self::Timeout { .. } | Self::Slow { .. })
    }

    /// The way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self.root() {
            Self::NotTls { host } => Some(format!(
                "if `{host}` may be spoken to in plain HTTP, say so: `--insecure-registry {host}`, or \
                 `\"registries\": {{\"{host}\": {{\"insecure\": true}}}}` in the settings"
            )),
            Self::Certificate { host, .. } => Some(format!(
                "give its certificate authority (`\"registries\": {{\"{host}\": {{\"ca\": [\"FILE\"]}}}}` in the \
                 settings), or do without verification: `--insecure-registry {host}`, or \
                 `\"registries\": {{\"{host}\": {{\"insecure\": true}}}}`"
            )),
            // Something that is no address of a host cannot be allowed.
            Self::RealmRefused { realm, .. } if realm.contains("://") => None,
            Self::ForeignRealm { host, realm } | Self::RealmRefused { host, realm, .. } => Some(format!(
                "if `{realm}` may be given the credentials of `{host}`, say so in the settings: \
                 `\"registries\": {{\"{host}\": {{\"auth-hosts\": [\"{realm}\"]}}}}`"
            )),
            Self::Denied { host, .. } => Some(format!("it may not exist, or it may need a login to `{host}`")),
            Self::NearAddress { .. } => {
                Some("if it may be asked nevertheless, say so: `build --allow-private-urls`".to_owned())
            }
            Self::Login { host, .. } => Some(format!("log in to `{host}` again")),
            Self::Schema1 { .. } => Some("push the image again with a tool of this decade".to_owned()),
            _ => None,
        }
    }

    /// Says what was being done.
    pub(crate) fn during(self, what: impl Into<String>) -> Self {
        match self {
            // Ours, not the registry's; and one level of this is enough.
            Self::Content(_) | Self::Operation { .. } => self,
            other => Self::Operation { what: what.into(), source: Box::new(other) },
        }
    }

    /// Whether the same request may succeed when it is sent again.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Slow { .. } | Self::Broken { .. } => true,
            Self::Status { status, .. } => is_transient_status(*status),
            _ => false,
        }
    }

    /// How long the server asks us to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    fn root(&self) -> &Self {
        match self {
            Self::Operation { source, .. } => source.root(),
            other => other,
        }
    }
}

/// Whether a status is worth another try.
pub(crate) fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}
