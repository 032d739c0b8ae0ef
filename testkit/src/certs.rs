//! Certificates for servers on this machine, right ones and wrong ones, made anew for every test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// What is wrong with the certificate of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing, for who trusts the authority: valid for `localhost`, `127.0.0.1` and `::1`.
    None,
    /// It was valid until the end of 2020.
    Expired,
    /// It is not valid before 2100.
    NotYetValid,
    /// It belongs to `elsewhere.example`.
    WrongHost,
    /// No authority signed it.
    SelfSigned,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate as PEM.
    pub cert: String,
    /// Its key as PEM (PKCS#8).
    pub key: String,
    /// The certificate as DER.
    pub der: Vec<u8>,
    /// The authorities whose certificates a server asks of its clients, as DER; none, and it asks for nothing.
    pub client_authority: Option<Vec<u8>>,
}

impl Certificate {
    /// Lets a server ask its clients for a certificate of `authority`.
    #[must_use]
    pub fn asking_clients_for(mut self, authority: &Authority) -> Certificate {
        self.client_authority = Some(authority.issuer.der().to_vec());
        self
    }

    /// Writes `NAME.crt` and `NAME.key` into `dir`, and returns the two paths.
    pub fn write(&self, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        fs::write(&cert, &self.cert).with_context(|| format!("cannot write `{}`", cert.display()))?;
        fs::write(&key, &self.key).with_context(|| format!("cannot write `{}`", key.display()))?;
        Ok((cert, key))
    }
}

/// An authority that only those trust who are told to.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority.
    pub fn new(name: &str) -> Result<Authority> {
        let mut params = params(name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// The authority's own certificate as PEM: what clients are told to trust.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Writes [`Authority::pem`] to `NAME.pem` in `dir`, and returns the path.
    pub fn write(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let path = dir.join(format!("{name}.pem"));
        fs::write(&path, self.pem()).with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(path)
    }

    /// A certificate for a server on this machine, good or with a flaw.
    pub fn server(&self, flaw: Flaw) -> Result<Certificate> {
        match flaw {
            Flaw::WrongHost => self.server_for(&["elsewhere.example"], flaw),
            Flaw::None | Flaw::Expired | Flaw::NotYetValid | Flaw::SelfSigned => {
                self.server_for(&["localhost", "127.0.0.1", "::1"], flaw)
            }
        }
    }

    /// A certificate for a server with these names.
    pub fn server_for(&self, names: &[&str], flaw: Flaw) -> Result<Certificate> {
        let mut params = params(names.first().copied().unwrap_or("server"), names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        match flaw {
            Flaw::None | Flaw::WrongHost | Flaw::SelfSigned => {}
            Flaw::Expired => params.not_after = date_time_ymd(2020, 12, 31),
            Flaw::NotYetValid => params.not_before = date_time_ymd(2100, 1, 1),
        }
        self.certify(&params, flaw == Flaw::SelfSigned)
    }

    /// A certificate for a client.
    pub fn client(&self, name: &str) -> Result<Certificate> {
        let mut params = params(name, &[name])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.certify(&params, false)
    }

    fn certify(&self, params: &CertificateParams, is_self_signed: bool) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let cert = if is_self_signed { params.self_signed(&key)? } else { params.signed_by(&key, &self.issuer)? };
        Ok(Certificate { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().to_vec(), client_authority: None })
    }
}

fn params(name: &str, names: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    Ok(params)
}
