//! The parameters of TLS: their defaults, and what contradicts each other.

use std::path::PathBuf;

use super::super::{ChannelBinding, Passwords, RootCert, SslMode, SslNegotiation, TlsSettings};
use super::{Builder, DefaultFiles};
use crate::error::Diagnosis;

impl Builder {
    pub(super) fn tls(&mut self, files: &DefaultFiles) -> TlsSettings {
        let given_mode = self.word(
            "sslmode",
            &[
                ("disable", SslMode::Disable),
                ("allow", SslMode::Allow),
                ("prefer", SslMode::Prefer),
                ("require", SslMode::Require),
                ("verify-ca", SslMode::VerifyCa),
                ("verify-full", SslMode::VerifyFull),
            ],
        );
        let root_cert = match self.get("sslrootcert") {
            Some("system") => RootCert::System,
            Some(path) => RootCert::File(PathBuf::from(path)),
            None => files.root_cert.clone().map_or(RootCert::None, RootCert::File),
        };
        let mode = match (given_mode, &root_cert) {
            (None, RootCert::System) => SslMode::VerifyFull,
            (None, _) => SslMode::Prefer,
            (Some(SslMode::Require), RootCert::File(_)) => SslMode::VerifyCa,
            (Some(mode), _) => mode,
        };
        let negotiation = self
            .word(
                "sslnegotiation",
                &[("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)],
            )
            .unwrap_or(SslNegotiation::Postgres);
        let channel_binding = self
            .word(
                "channel_binding",
                &[
                    ("disable", ChannelBinding::Disable),
                    ("prefer", ChannelBinding::Prefer),
                    ("require", ChannelBinding::Require),
                ],
            )
            .unwrap_or(ChannelBinding::Prefer);
        let client_cert = self.client_cert(files);
        let passwords = Passwords::OverAnyConnection;
        let tls = TlsSettings { mode, negotiation, root_cert, client_cert, channel_binding, passwords };
        if given_mode.is_some() || self.get("sslmode").is_none() {
            self.check_tls(&tls);
        }
        tls
    }

    /// Reports settings that contradict each other.
    fn check_tls(&mut self, tls: &TlsSettings) {
        let mode = tls.mode.as_str();
        if tls.root_cert == RootCert::System && tls.mode != SslMode::VerifyFull {
            self.problem(
                Diagnosis::new(format!(
                    "{}={mode} is too weak for sslrootcert=system",
                    self.label("sslmode")
                ))
                .detail("anybody can obtain a certificate that the system's trust store accepts")
                .hint("use sslmode=verify-full, or leave sslmode out"),
            );
        }
        if tls.mode >= SslMode::VerifyCa && tls.root_cert == RootCert::None {
            self.problem(
                Diagnosis::new(format!(
                    "{}={mode} needs a root certificate to verify against",
                    self.label("sslmode")
                ))
                .detail("sslrootcert is not given, and there is no ~/.postgresql/root.crt")
                .hint(
                    "set sslrootcert to a PEM file, or to \"system\" for the operating system's trust store",
                ),
            );
        }
        if tls.negotiation == SslNegotiation::Direct && tls.mode < SslMode::Require {
            self.problem(
                Diagnosis::new(format!(
                    "{}=direct needs TLS, but sslmode is {mode}",
                    self.label("sslnegotiation")
                ))
                .hint("use sslmode=require, verify-ca or verify-full"),
            );
        }
        if tls.channel_binding == ChannelBinding::Require && tls.mode == SslMode::Disable {
            self.problem(
                Diagnosis::new(format!(
                    "{}=require needs TLS, but sslmode is disable",
                    self.label("channel_binding")
                ))
                .hint("use sslmode=require, verify-ca or verify-full"),
            );
        }
    }

    fn client_cert(&mut self, files: &DefaultFiles) -> Option<(PathBuf, PathBuf)> {
        match (self.path("sslcert"), self.path("sslkey")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => files.client_cert.clone(),
            (cert, _) => {
                let (given, missing) =
                    if cert.is_some() { ("sslcert", "sslkey") } else { ("sslkey", "sslcert") };
                self.problem(
                    Diagnosis::new(format!("{} is given without {missing}", self.label(given)))
                        .hint("give a client certificate and its key together, or neither"),
                );
                None
            }
        }
    }
}
