//! Channel binding data of type `tls-server-end-point` (RFC 5929, section 4.1). Pure.
//!
//! The hash is the one of the certificate's own signature algorithm, except that MD5 and SHA-1 are
//! replaced by SHA-256. An algorithm without a single hash (Ed25519) defines no binding; PostgreSQL
//! itself refuses to compute one (`be_tls_get_certificate_hash` in `be-secure-openssl.c`).

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// A hash that a certificate's signature may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// Returns the binding data for a server certificate in DER; `None` if the certificate defines none.
pub(super) fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let hash = match SignatureAlgorithm::try_from(algorithm) {
        Ok(SignatureAlgorithm::RSASSA_PSS(params)) => {
            hash_of_digest(&params.hash_algorithm_oid().to_id_string())
        }
        _ => hash_of_signature(&algorithm.algorithm.to_id_string()),
    }?;
    Some(match hash {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

/// Returns the hash of a signature algorithm by its object identifier (RFC 3279, RFC 4055, RFC 5758).
fn hash_of_signature(oid: &str) -> Option<Hash> {
    Some(match oid {
        "1.2.840.113549.1.1.4"      // md5WithRSAEncryption
        | "1.2.840.113549.1.1.5"    // sha1WithRSAEncryption
        | "1.2.840.10040.4.3"       // dsa-with-sha1
        | "1.2.840.10045.4.1"       // ecdsa-with-SHA1
        | "1.2.840.113549.1.1.11"   // sha256WithRSAEncryption
        | "2.16.840.1.101.3.4.3.2"  // dsa-with-sha256
        | "1.2.840.10045.4.3.2"     // ecdsa-with-SHA256
        => Hash::Sha256,
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Hash::Sha224,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Hash::Sha384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Hash::Sha512,
        _ => return None,
    })
}

/// Returns the hash of a digest by its own object identifier, which RSASSA-PSS has in its parameters.
fn hash_of_digest(oid: &str) -> Option<Hash> {
    Some(match oid {
        "1.2.840.113549.2.5" | "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Hash::Sha256,
        "2.16.840.1.101.3.4.2.4" => Hash::Sha224,
        "2.16.840.1.101.3.4.2.2" => Hash::Sha384,
        "2.16.840.1.101.3.4.2.3" => Hash::Sha512,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(algorithm: &'static rcgen::SignatureAlgorithm, expected_bytes: Option<usize>) {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let cert = rcgen::CertificateParams::new(vec!["db".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(tls_server_end_point(cert.der()).map(|data| data.len()), expected_bytes, "{algorithm:?}");
    }

    #[test]
    fn the_hash_follows_the_signature_algorithm() {
        check(&rcgen::PKCS_ECDSA_P256_SHA256, Some(32));
        check(&rcgen::PKCS_ECDSA_P384_SHA384, Some(48));
        check(&rcgen::PKCS_ED25519, None);
    }

    #[test]
    fn md5_and_sha1_become_sha256() {
        for oid in ["1.2.840.113549.1.1.4", "1.2.840.113549.1.1.5"] {
            assert_eq!(hash_of_signature(oid), Some(Hash::Sha256));
        }
        assert_eq!(hash_of_digest("1.3.14.3.2.26"), Some(Hash::Sha256));
    }

    #[test]
    fn garbage_has_no_binding() {
        assert_eq!(tls_server_end_point(b"not a certificate"), None);
        assert_eq!(tls_server_end_point(&[]), None);
    }
}
