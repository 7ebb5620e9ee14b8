//! Whom a TLS connection trusts.
//!
//! Nothing is installed for the whole process: the embedding program may use rustls with another provider.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::error::{Failure, RegistryErrorKind};
use crate::record::read_bounded;

/// The largest file of certificates, in bytes. That of a whole system has a quarter of a million.
const CA_FILE_MAX: u64 = 4 << 20;

/// Whose certificates are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// Those that the system trusts.
    System,
    /// Those, and what the authorities in this PEM file sign.
    And(PathBuf),
    /// Anybody's.
    Anyone,
}

/// Reads the system's certificates: some milliseconds, with blocking I/O.
pub(super) fn config(trust: &Trust) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::new(RegistryErrorKind::Settings, "TLS cannot be set up").because(e))?;
    let mut config = match trust {
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
        Trust::System => builder.with_root_certificates(system()),
        Trust::And(path) => {
            let mut roots = system();
            add(&mut roots, path)?;
            builder.with_root_certificates(roots)
        }
    }
    .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A system without certificates is one that trusts nobody: each connection then fails with that.
fn system() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a certificate of the system cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, "took the certificates that the system trusts");
    roots
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), Failure> {
    let failed = |reason: &str| {
        let message = format!("the file of certificates {} cannot be used: {reason}", path.display());
        Failure::new(RegistryErrorKind::Settings, message)
    };
    let pem = match read_bounded(path, CA_FILE_MAX) {
        Ok(Some(pem)) => pem,
        Ok(None) => return Err(failed("there is none")),
        Err(error) => return Err(failed("it cannot be read").because(error)),
    };
    let mut added = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| failed("it is no PEM file").because(e))?;
        roots.add(certificate).map_err(|e| failed("a certificate in it is broken").because(e))?;
        added += 1;
    }
    if added == 0 { Err(failed("there is no certificate in it")) } else { Ok(()) }
}

/// Accepts any certificate. The signatures of the handshake still have to fit the certificate's key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
