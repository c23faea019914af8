//! A live store can be operated: the process that owns it answers others.
//!
//! The owner of a RocksDB directory offers a socket in it, `atlas.sock`, and whoever may read the directory finds it
//! there: the command line asks first whether somebody answers, and opens the store itself only if nobody does. The
//! same protocol (`proto/atlas/v1/atlas.proto`) is spoken over TCP on the loopback address by `atlas serve`, which
//! also tells its health over HTTP. The socket lets in its user; over TCP, which every user of the machine reaches, a
//! call carries the token in a file of the data directory, `server.token`.
//!
//! ```text
//!   atlas kv put ──┐                               ┌── Operations (Atlas, in this process)
//!   an application ┼─ RemoteAtlas ═ socket ═ Server ┤
//!   curl /metrics ─┘                               └── transactions with leases, outcomes of finished ones
//! ```
//!
//! What holds on both sides:
//!
//! * An error keeps its code, sentence, hint and exit code on its way ([`Error::Remote`](crate::Error::Remote)).
//! * A lost answer is never told as a failure: a commit is settled by asking once more, and is
//!   [`Error::UnknownOutcome`](crate::Error::UnknownOutcome) where that does not help; any other change is
//!   `INDETERMINATE`. Only what was never sent, and what changes nothing, is `UNAVAILABLE`.
//! * A commit that has begun is carried through, whatever becomes of the connection that asked for it.
//! * Whatever grows has a limit: [`Limits`].

// How large an error may be is decided where it is defined.
#![allow(clippy::result_large_err)]

pub(crate) mod challenge;
mod client;
mod coalesce;
mod http;
mod listen;
mod locate;
mod locks;
mod services;
mod socket;
mod standby;
pub(crate) mod store_token;
mod token;
mod transactions;
mod wire;

pub use client::RemoteAtlas;
pub use listen::{Addresses, Server, serve, serve_socket};
pub(crate) use listen::{Listeners, check_addresses};
pub(crate) use locate::{Owner, find_owner};
pub use locks::{LocalLocks, LockLease, LockOps};
pub use services::{Limits, Services};
pub use socket::socket_path;
pub(crate) use standby::Standby;
pub use token::{FILE_VARIABLE as TOKEN_FILE_VARIABLE, token_path};

use crate::Result;
use std::path::Path;
use std::time::Duration;

/// The protocol as generated from `proto/atlas/v1/atlas.proto`, for programs that speak it by themselves. Its
/// documentation is that file.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("atlas.v1");
}

/// Version of the protocol: programs of different ones do not talk to each other.
pub const PROTOCOL: u32 = 1;

/// Longest message in bytes: the longest value of the default configuration (64 MiB), its names and some room.
pub const MESSAGE_LEN_MAX: usize = 68 << 20;

/// How much is put into one message where the content may be divided, in bytes.
const PAGE_LEN: usize = 1 << 20;

/// How often a silent connection with calls on it is asked for a sign of life, and how long that may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How many descriptors or tokens of locks one call may name.
const LOCKS_MAX: usize = 10_000;

/// The owner of the store in `data_dir`, if one answers.
///
/// `None` if there is no socket, or only the file that a dead process left behind: then nobody serves this directory.
///
/// # Errors
/// * [`Error::Refused`](crate::Error::Refused) if the owner speaks another version of the protocol.
/// * [`Error::Unavailable`](crate::Error::Unavailable) if somebody accepts connections but does not answer in time.
/// * [`Error::Io`](crate::Error::Io) if the socket may not be used, or belongs to a stranger.
///
/// Cancel safe: nothing is changed anywhere.
pub async fn connect(data_dir: &Path) -> Result<Option<RemoteAtlas>> {
    RemoteAtlas::connect_socket(data_dir).await
}
