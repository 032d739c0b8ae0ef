//! Debian's `docker-registry`, with TLS and the two ways of authentication that registries in the field use.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::auth::basic;
use super::http::{Handler, Reply, Request, Server, Transport};
use super::tls_config;
use crate::Unavailable;
use crate::certs::{Authority, Certificate, Flaw};

/// The user that a [`RealRegistry`] knows.
pub const REAL_USER: &str = "tester";
/// The password of [`REAL_USER`].
pub const REAL_PASSWORD: &str = "testkit-password";
/// An htpasswd line for the two: bcrypt at cost 5, made once with crypt(3). It protects nothing but tests.
const HTPASSWD: &str = "tester:$2y$05$buildenginetestkitsalew0i4H5d/TpKWRZ4Wyu2Znz2y1ebey26\n";

const ISSUER: &str = "build-engine testkit";
const SERVICE: &str = "registry of the testkit";

/// Whom a [`RealRegistry`] lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Who shows [`REAL_USER`] and [`REAL_PASSWORD`] with each request.
    Basic,
    /// Who shows a token, which a token server in this process signs for [`REAL_USER`].
    Token,
}

/// A running `docker-registry` with a storage of its own. Dropping it ends the process and removes the storage.
pub struct RealRegistry {
    process: Child,
    host: String,
    log: Arc<Mutex<Vec<String>>>,
    tokens: Option<Server>,
    // Last, so that it is removed after the process has ended.
    _dir: TempDir,
}

impl RealRegistry {
    /// Starts a registry; with `certificate` it, and its token server, speak TLS.
    ///
    /// # Errors
    /// [`Unavailable`] without `docker-registry` (package docker-registry).
    pub fn start(access: Access, certificate: Option<&Certificate>) -> Result<RealRegistry> {
        let dir = tempfile::Builder::new().prefix("build-engine-registry-").tempdir()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut config = json!({
            "version": "0.1",
            // The address is read from the log.
            "log": { "level": "info", "accesslog": { "disabled": false } },
            "storage": { "filesystem": { "rootdirectory": path("storage") }, "delete": { "enabled": true } },
            "http": { "addr": "127.0.0.1:0", "secret": "a secret of the testkit" },
        });
        if let Some(certificate) = certificate {
            let (cert, key) = certificate.write(dir.path(), "server")?;
            config["http"]["tls"] = json!({ "certificate": cert, "key": key });
        }
        let mut tokens = None;
        match access {
            Access::Open => {}
            Access::Basic => {
                fs::write(path("htpasswd"), HTPASSWD)?;
                config["auth"] = json!({ "htpasswd": { "realm": "testkit", "path": path("htpasswd") } });
            }
            Access::Token => {
                let signer = Signer::new()?;
                fs::write(path("signer.crt"), &signer.certificate.cert)?;
                let transport = match certificate {
                    Some(certificate) => Transport::Tls(Arc::new(tls_config(certificate)?)),
                    None => Transport::Plain,
                };
                let server = Server::start("127.0.0.1:0", transport, |_| Arc::new(signer))?;
                let scheme = if certificate.is_some() { "https" } else { "http" };
                config["auth"] = json!({ "token": {
                    "realm": format!("{scheme}://{}/token", server.host), "service": SERVICE, "issuer": ISSUER,
                    "rootcertbundle": path("signer.crt"),
                } });
                tokens = Some(server);
            }
        }
        // JSON is YAML.
        fs::write(path("config.yml"), serde_json::to_vec(&config)?)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path("config.yml")).env_clear().env("PATH", "/usr/bin:/bin");
        command.env("OTEL_TRACES_EXPORTER", "none").current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = match command.spawn() {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Unavailable("`docker-registry` is missing (package docker-registry)".to_owned()).into());
            }
            Err(error) => return Err(error).context("cannot start `docker-registry`"),
        };
        let log = Arc::new(Mutex::new(Vec::new()));
        let addresses = follow(process.stderr.take().context("no pipe")?, &log);
        let _ = follow(process.stdout.take().context("no pipe")?, &log);
        let mut registry = RealRegistry { process, host: String::new(), log, tokens, _dir: dir };
        match addresses.recv_timeout(Duration::from_secs(60)) {
            Ok(host) => registry.host = host,
            Err(_) => bail!("`docker-registry` did not come up:\n{}", registry.log().join("\n")),
        }
        Ok(registry)
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `127.0.0.1:PORT` of the token server, with [`Access::Token`].
    pub fn token_host(&self) -> Option<&str> {
        self.tokens.as_ref().map(|server| server.host.as_str())
    }

    /// What the token server was asked.
    pub fn token_requests(&self) -> Vec<Request> {
        self.tokens.as_ref().map(|server| server.shared.requests()).unwrap_or_default()
    }

    /// `127.0.0.1:PORT/REPOSITORY:TAG`.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.host)
    }

    /// All that it has logged so far: a line of the usual access log for each request among it.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Collects lines into `log`, and sends the address that the registry listens on.
fn follow(pipe: impl Read + Send + 'static, log: &Arc<Mutex<Vec<String>>>) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let log = Arc::clone(log);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address: String = rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
                let _ = sender.send(address);
            }
            log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
    receiver
}

/// A token server: the tokens are JWTs that carry the certificate of the key they are signed with.
struct Signer {
    certificate: Certificate,
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Result<Signer> {
        let certificate = Authority::new("testkit")?.server_for(&["token.example"], Flaw::SelfSigned)?;
        let random = SystemRandom::new();
        let pkcs8 = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).context("the key is no PEM")?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.secret_der(), &random)
            .map_err(|error| anyhow::anyhow!("the key is unusable: {error}"))?;
        Ok(Signer { certificate, key, random })
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate.der)] });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.key.sign(&self.random, text.as_bytes()).expect("the random source of the system works");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

impl Handler for Signer {
    fn head(&self, _: &Request) -> Option<Reply> {
        None
    }

    fn answer(&self, request: &Request) -> Reply {
        if request.path != "/token" {
            return Reply::error(404, "NOT_FOUND", "no such path");
        }
        // As Docker's own: no POST, and clients fall back to GET.
        if request.method != "GET" {
            return Reply::error(405, "UNSUPPORTED", "method not allowed");
        }
        match basic(request) {
            Some((user, password)) if user == REAL_USER && password == REAL_PASSWORD => {}
            _ => {
                return Reply::error(401, "UNAUTHORIZED", "incorrect username or password")
                    .header("WWW-Authenticate", "Basic realm=\"testkit\"");
            }
        }
        let scopes = request.query.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
        let access: Vec<Value> = scopes
            .filter_map(|scope| {
                let (rest, actions) = scope.rsplit_once(':')?;
                let (kind, name) = rest.split_once(':')?;
                Some(json!({ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }))
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let token = self.sign(&json!({
            "iss": ISSUER, "sub": REAL_USER, "aud": request.parameter("service").unwrap_or_default(),
            "exp": now + 300, "nbf": now - 10, "iat": now, "jti": format!("{now}-{}", request.connection),
            "access": access,
        }));
        Reply::ok("application/json", json!({ "token": token, "expires_in": 300 }).to_string())
    }
}
