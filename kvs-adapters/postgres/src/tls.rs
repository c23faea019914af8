//! Encrypted connections, where this build has them (the cargo feature `tls`).

use crate::config::PostgresConfig;
use atlas_kvs::{KvsError, Result};
use tokio_postgres::{CancelToken, Client, Config, Error, NoTls, Socket, tls::MakeTlsConnect};

/// How connections are encrypted.
#[derive(Clone)]
pub(crate) enum Tls {
    /// Not at all.
    Off,
    #[cfg(feature = "tls")]
    On(tokio_postgres_rustls::MakeRustlsConnect),
}

impl Tls {
    /// What a configuration asks for.
    ///
    /// # Errors
    /// If this build can't do it, or the root certificates can't be used.
    pub(crate) async fn new(config: &PostgresConfig) -> Result<Tls> {
        use crate::config::SslMode;

        match (config.ssl_mode, &config.ssl_root_certificate) {
            (SslMode::VerifyFull, None) => Err(refused(
                "verify-full needs the file of the root certificate that the server's was signed with".to_owned(),
            )),
            (SslMode::Disable | SslMode::Require, Some(_)) => Err(refused(
                "a root certificate has a meaning only with verify-full: without it nobody looks at it".to_owned(),
            )),
            (SslMode::Disable, None) => Ok(Tls::Off),
            #[cfg(feature = "tls")]
            (SslMode::Require, None) => encrypted::any_server().map(Tls::On),
            #[cfg(feature = "tls")]
            (SslMode::VerifyFull, Some(file)) => encrypted::known_server(file).await.map(Tls::On),
            #[cfg(not(feature = "tls"))]
            (SslMode::Require | SslMode::VerifyFull, _) => Err(refused(
                "encrypted connections are not part of this build: build it with the feature 'tls', or choose \
                 'disable' if nobody can listen on the way to the server"
                    .to_owned(),
            )),
        }
    }

    /// A connection, and the task that works on it.
    pub(crate) async fn connect(
        &self,
        config: &Config,
    ) -> std::result::Result<(Client, tokio::task::JoinHandle<()>), Error> {
        match self {
            Tls::Off => connected(config, NoTls).await,
            #[cfg(feature = "tls")]
            Tls::On(connector) => connected(config, connector.clone()).await,
        }
    }

    /// Asks the server to stop what it does on a connection.
    pub(crate) async fn cancel(&self, token: &CancelToken) -> std::result::Result<(), Error> {
        match self {
            Tls::Off => token.cancel_query(NoTls).await,
            #[cfg(feature = "tls")]
            Tls::On(connector) => token.cancel_query(connector.clone()).await,
        }
    }
}

async fn connected<T>(config: &Config, tls: T) -> std::result::Result<(Client, tokio::task::JoinHandle<()>), Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, connection) = config.connect(tls).await?;
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended");
        }
    });
    Ok((client, task))
}

fn refused(reason: String) -> KvsError {
    KvsError::Misconfigured { reason, source: None }
}

/// Why the server was not believed to be who it should be, if that was it.
#[cfg(feature = "tls")]
pub(crate) fn distrust(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls) = error.downcast_ref::<rustls::Error>() {
            return Some(rustls.to_string());
        }
        // An `io::Error` does not show what it wraps among its causes.
        next = match error.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(not(feature = "tls"))]
pub(crate) fn distrust(_error: &(dyn std::error::Error + 'static)) -> Option<String> {
    None
}

#[cfg(feature = "tls")]
mod encrypted {
    use super::{Result, refused};
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
    use std::path::Path;
    use std::sync::Arc;
    use tokio_postgres_rustls::MakeRustlsConnect;

    /// Encrypts, and believes everyone.
    pub(super) fn any_server() -> Result<MakeRustlsConnect> {
        let provider = Arc::new(ring::default_provider());
        let config = builder(&provider)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
            .with_no_client_auth();
        Ok(MakeRustlsConnect::new(config))
    }

    /// Encrypts, and believes those whose certificates are signed by one in a file.
    pub(super) async fn known_server(file: &Path) -> Result<MakeRustlsConnect> {
        let wrong = |reason: String| refused(format!("the root certificate {} {reason}", file.display()));
        let text = tokio::fs::read(file).await.map_err(|error| wrong(format!("can't be read: {error}")))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| wrong(format!("is no PEM file: {error}")))?;
            roots.add(certificate).map_err(|error| wrong(format!("is not usable: {error}")))?;
        }
        if roots.is_empty() {
            return Err(wrong("holds no certificate".to_owned()));
        }
        let provider = Arc::new(ring::default_provider());
        Ok(MakeRustlsConnect::new(builder(&provider)?.with_root_certificates(roots).with_no_client_auth()))
    }

    fn builder(provider: &Arc<CryptoProvider>) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
        ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| refused(format!("encryption can't be set up: {error}")))
    }

    /// Takes every certificate. That the server has the key to it is still checked.
    #[derive(Debug)]
    struct AnyServer(Arc<CryptoProvider>);

    impl ServerCertVerifier for AnyServer {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> std::result::Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}
