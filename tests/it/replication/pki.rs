//! A certificate authority for a test's server and clients.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    pub(crate) server_pem: String,
    pub(crate) server_key_pem: String,
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Creates an authority and a server certificate for `localhost`.
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = named("pgsluice test authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate().unwrap();
        let server = named("server", &["localhost"]).signed_by(&server_key, &issuer).unwrap();
        let dir = tempfile::Builder::new().prefix("pgsluice-pki-").tempdir().unwrap();
        Self { ca_pem, server_pem: server.pem(), server_key_pem: server_key.serialize_pem(), dir, issuer }
    }

    /// Returns certificate and key of another server for `localhost`, which `change` may alter.
    pub(crate) fn server(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = named("server", &["localhost"]);
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Returns a certificate for `localhost` that nobody but its own key has signed, and that key.
    pub(crate) fn self_signed() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (named("server", &["localhost"]).self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.write("ca.pem", &self.ca_pem)
    }

    /// Returns certificate and key of a client whose common name is `role`.
    pub(crate) fn client(&self, role: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let certificate = named(role, &[]).signed_by(&key, &self.issuer).unwrap();
        (self.write("client.pem", &certificate.pem()), self.write("client.key", &key.serialize_pem()))
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

fn named(common_name: &str, alternative_names: &[&str]) -> CertificateParams {
    let names: Vec<String> = alternative_names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}
