//! TLS: which authorities are trusted, and what we show of ourselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::{Error, HostSettings};

/// Where distributions keep the authorities that they trust.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Makes configurations of TLS. The authorities are read when they are first needed: most builds speak to no registry,
/// and many of the others to one on this machine in plain HTTP.
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    ca_bundle: Option<PathBuf>,
    roots: OnceLock<RootCertStore>,
}

impl Tls {
    /// Trusts the authorities in `ca_bundle`, or the system's.
    pub(crate) fn new(ca_bundle: Option<&Path>) -> Self {
        let provider = Arc::new(ring::default_provider());
        Self { provider, ca_bundle: ca_bundle.map(Path::to_owned), roots: OnceLock::new() }
    }

    /// The authorities that are trusted everywhere.
    fn roots(&self) -> Result<RootCertStore, Error> {
        if let (None, Some(path)) = (self.roots.get(), &self.ca_bundle) {
            let mut store = RootCertStore::empty();
            add_authorities(&mut store, path)?;
            // Whoever was faster has read the same file.
            let _ = self.roots.set(store);
        }
        Ok(self.roots.get_or_init(system_roots).clone())
    }

    /// The configuration for a host with `settings`.
    ///
    /// # Errors
    /// Files that cannot be read, or are not what they should be.
    pub(crate) fn config(&self, settings: Option<&HostSettings>) -> Result<ClientConfig, Error> {
        let plain = HostSettings::default();
        let settings = settings.unwrap_or(&plain);
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|source| invalid("TLS cannot be set up".to_owned(), source))?;
        let builder = if settings.insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(self.provider.clone())))
        } else {
            let mut roots = self.roots()?;
            for path in &settings.ca {
                add_authorities(&mut roots, path)?;
            }
            builder.with_root_certificates(roots)
        };
        match (&settings.cert, &settings.key) {
            (None, None) => Ok(builder.with_no_client_auth()),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let secret = PrivateKeyDer::from_pem_file(key)
                    .map_err(|source| invalid(format!("cannot read a key from `{}`", key.display()), source))?;
                builder.with_client_auth_cert(chain, secret).map_err(|source| {
                    invalid(format!("`{}` and `{}` do not belong together", cert.display(), key.display()), source)
                })
            }
            (Some(path), None) | (None, Some(path)) => Err(Error::Settings {
                what: format!("`{}`: a client certificate needs both `cert` and `key`", path.display()),
                source: None,
            }),
        }
    }

    /// A configuration that trusts nobody, for clients that speak plain HTTP.
    pub(crate) fn none(&self) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|source| invalid("TLS cannot be set up".to_owned(), source))?;
        Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    }
}

fn invalid(what: String, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Settings { what, source: Some(Box::new(source)) }
}

/// The first bundle that has certificates. Without any nobody is trusted, and the first connection says so.
fn system_roots() -> RootCertStore {
    let mut store = RootCertStore::empty();
    for path in SYSTEM_BUNDLES.iter().map(PathBuf::from) {
        if path.exists() && add_authorities(&mut store, &path).is_ok() {
            break;
        }
    }
    if store.is_empty() {
        tracing::warn!("no certificate authorities were found on this system");
    }
    store
}

fn add_authorities(store: &mut RootCertStore, path: &Path) -> Result<(), Error> {
    // System bundles may have certificates that this TLS cannot use; those are no reason to trust none of the others.
    let (added, _) = store.add_parsable_certificates(certificates(path)?);
    if added == 0 {
        let what = format!("`{}` has no certificate of an authority that can be used", path.display());
        return Err(Error::Settings { what, source: None });
    }
    Ok(())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let cannot = || format!("cannot read certificates from `{}`", path.display());
    let bytes = fs::read(path).map_err(|source| invalid(cannot(), source))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|source| invalid(cannot(), source))?;
    if found.is_empty() {
        return Err(Error::Settings { what: format!("`{}` has no certificate", path.display()), source: None });
    }
    Ok(found)
}

/// Takes every certificate, as the user asked for; the handshake itself is still verified.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
