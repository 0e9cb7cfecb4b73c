//! Verifies a server's certificate as libpq's sslmode defines it.
//!
//! | sslmode | chain | host name |
//! | --- | --- | --- |
//! | prefer, require without root certificate | no | no |
//! | require with root certificate, verify-ca | yes | no |
//! | verify-full | yes | yes |
//!
//! The handshake's signature is verified in every mode: the peer holds the key of the certificate that
//! it sent, which channel binding relies on.
//!
//! Two things that OpenSSL, and therefore libpq, accepts but webpki does not are accepted here, because
//! PostgreSQL's documentation creates such certificates: a self-signed server certificate that is
//! itself listed in sslrootcert, and a host name in the common name when the certificate has no subject
//! alternative names (`pgtls_verify_peer_name_matches_certificate_guts`).

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Certificates to trust.
#[derive(Debug)]
pub(super) struct Trust {
    /// The certificates that are usable as issuers.
    pub(super) roots: RootCertStore,
    /// All certificates of the file.
    pub(super) given: Vec<CertificateDer<'static>>,
}

/// What to verify.
#[derive(Debug)]
pub(super) enum Check {
    Nothing,
    Chain(Trust),
    ChainAndName(Trust),
}

#[derive(Debug)]
pub(super) struct Verifier {
    check: Check,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(check: Check, provider: &Arc<CryptoProvider>) -> Self {
        Self { check, algorithms: provider.signature_verification_algorithms }
    }

    fn verify_chain(
        &self,
        trust: &Trust,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if trust.given.iter().any(|given| given.as_ref() == end_entity.as_ref()) {
            return verify_dates(end_entity, now);
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &trust.roots,
            intermediates,
            now,
            self.algorithms.all,
        )
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.check {
            Check::Nothing => {}
            Check::Chain(trust) => self.verify_chain(trust, end_entity, intermediates, now)?,
            Check::ChainAndName(trust) => {
                self.verify_chain(trust, end_entity, intermediates, now)?;
                verify_name(end_entity, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// Checks the validity period of a certificate that is itself trusted.
fn verify_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = parse(certificate)?;
    let validity = &parsed.validity;
    let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now_s < validity.not_before.timestamp() {
        return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now_s > validity.not_after.timestamp() {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}

/// Checks the host name against the subject alternative names or, if there are none of either kind,
/// against the common name.
fn verify_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let refused = match ParsedCertificate::try_from(certificate).and_then(|c| verify_server_name(&c, name)) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let parsed = parse(certificate)?;
    let alternatives = parsed.subject_alternative_name().ok().flatten();
    let named = alternatives.is_some_and(|names| {
        names
            .value
            .general_names
            .iter()
            .any(|n| matches!(n, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
    });
    let host = name.to_str();
    let common_name_fits = !named
        && parsed.subject().iter_common_name().any(|cn| cn.as_str().is_ok_and(|cn| name_matches(cn, &host)));
    if common_name_fits { Ok(()) } else { Err(refused) }
}

/// Compares names by libpq's rule (`pq_verify_peer_name_matches_certificate_name`,
/// `wildcard_certificate_match`): they are equal except for case, or the pattern begins with `*.`,
/// which stands for exactly one label.
fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(suffix), Some((label, rest))) = (pattern.strip_prefix("*."), host.split_once('.')) else {
        return false;
    };
    !label.is_empty() && !suffix.is_empty() && suffix.eq_ignore_ascii_case(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_names_match_as_libpq_matches_them() {
        let check = |pattern: &str, host: &str, fits: bool| {
            assert_eq!(name_matches(pattern, host), fits, "{pattern} {host}");
        };
        check("db.example", "DB.example", true);
        check("*.example", "db.example", true);
        check("*.example", "a.db.example", false);
        check("*.example", "example", false);
        check("*.example", ".example", false);
        check("*.", "db.", false);
        check("db", "db2", false);
    }

    fn certificate(common_name: &str, alternative_names: &[&str]) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = alternative_names.iter().map(|&n| n.to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        params.self_signed(&key).unwrap().der().clone()
    }

    fn fits(certificate: &CertificateDer<'_>, host: &str) -> bool {
        verify_name(certificate, &ServerName::try_from(host.to_owned()).unwrap()).is_ok()
    }

    #[test]
    fn the_common_name_counts_only_without_alternative_names() {
        let bare = certificate("db.example", &[]);
        assert!(fits(&bare, "db.example"));
        assert!(!fits(&bare, "other.example"));
        let named = certificate("db.example", &["other.example", "127.0.0.1"]);
        assert!(!fits(&named, "db.example"));
        assert!(fits(&named, "other.example"));
        assert!(fits(&named, "127.0.0.1"));
        assert!(!fits(&named, "127.0.0.2"));
    }

    #[test]
    fn a_listed_certificate_is_trusted_only_while_valid() {
        let listed = certificate("db", &[]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust = || Trust { roots: RootCertStore::empty(), given: vec![listed.clone()] };
        let verifier = Verifier::new(Check::Chain(trust()), &provider);
        let name = ServerName::try_from("anything").unwrap();
        let verify = |cert: &CertificateDer<'_>, now: u64| {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
            verifier.verify_server_cert(cert, &[], &name, &[], now).map(|_| ())
        };
        assert_eq!(verify(&listed, 1_700_000_000), Ok(()));
        assert_eq!(verify(&listed, 0), Err(Error::InvalidCertificate(CertificateError::NotValidYet)));
        assert_eq!(verify(&listed, 1 << 40), Err(Error::InvalidCertificate(CertificateError::Expired)));
        assert!(verify(&certificate("db", &[]), 1_700_000_000).is_err());
    }
}
