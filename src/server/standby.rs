//! What a server answers while another process owns its store: who that is, and that it must be asked.

use super::http;
use super::listen::{Closing, Listeners, serve_grpc, serve_http};
use super::services::Limits;
use super::wire;
use crate::{Error, Result};
use std::io;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::DropGuard;

/// Answers on ports whose server waits for its turn, until it is dropped. Who is connected then is cut, and who connects
/// later is the server's.
pub(crate) struct Standby {
    _cut: DropGuard,
    _answering: JoinSet<()>,
}

impl Standby {
    /// `owner` is what is known of the owner, in words.
    ///
    /// # Errors
    /// [`Error::Io`] if the ports can't be shared.
    pub(crate) fn start(listeners: &Listeners, owner: watch::Receiver<String>) -> Result<Standby> {
        let closing = Closing::default();
        let mut answering = JoinSet::new();
        if let Some(listener) = &listeners.grpc {
            let owner = owner.clone();
            let router = axum::Router::new().fallback(async move || refusal(&owner.borrow()));
            answering.spawn(serve_grpc(router, Limits::default(), same_port(listener)?, closing.clone()));
        }
        if let Some(listener) = &listeners.http {
            let router = http::standby_router(owner);
            answering.spawn(serve_http(router, Limits::default(), same_port(listener)?, closing.clone()));
        }
        Ok(Standby { _cut: closing.cut.drop_guard(), _answering: answering })
    }
}

/// Another handle of the same port: whichever is waited on gets who connects.
fn same_port(listener: &TcpListener) -> Result<TcpListener> {
    let shared = || -> io::Result<TcpListener> {
        TcpListener::from_std(std::net::TcpListener::from(rustix::io::fcntl_dupfd_cloexec(listener, 0)?))
    };
    shared().map_err(|error| Error::io("sharing a port with its future server", error))
}

fn refusal(owner: &str) -> axum::response::Response {
    let error = Error::Unavailable {
        what: "this server".to_owned(),
        reason: format!("it stands by while the store is owned by {owner}"),
    };
    wire::status_of(&error).into_http()
}
