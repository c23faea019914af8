//! Listening, and ending in order.
//!
//! When it is asked to end, a server removes its socket, accepts nobody, begins nothing, and lets the commits that have
//! begun finish and be answered. Then it ends the calls that have no end of their own, cuts the connections that are
//! left, aborts the open transactions, and returns: nothing of it uses the store any more.

use super::PING_INTERVAL;
use super::http;
use super::services::{Api, Limits, Services};
use super::socket::{self, OwnerSocket, SocketFile};
use super::token::{self, Guard, Token};
use crate::config::ServerConfig;
use crate::{Error, Result};
use futures::Stream;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// How many calls a connection may have at once. Calls that wait for locks take a place too, and those that give
/// locks back must still get through.
const CALLS_MAX: u32 = 10_000;

/// How long connections may take to close once all commits are done.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the socket of `data_dir` until `shutdown` completes. For an application that owns its store; the caller
/// holds the owner's lock of the directory.
///
/// # Errors
/// * [`Error::StoreInUse`] if a living process serves this socket.
/// * [`Error::Io`] if the socket can't be made.
///
/// Cancel safety: dropping the future closes the socket and aborts what clients have open; a commit that has begun is
/// carried through.
pub async fn serve_socket(
    services: impl Into<Services>,
    data_dir: &Path,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    Server::bind_socket(services, data_dir).await?.run(shutdown).await;
    Ok(())
}

/// Serves all that is configured until `shutdown` completes: the socket of `data_dir` if there is one, gRPC over TCP
/// and HTTP. [`Server`] does the same in two steps, for whoever wants to know when it is ready.
///
/// # Errors
/// As [`Server::bind`]. Cancel safety as [`serve_socket`].
pub async fn serve(
    services: impl Into<Services>,
    config: &ServerConfig,
    data_dir: Option<&Path>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    Server::bind(services, config, data_dir).await?.run(shutdown).await;
    Ok(())
}

/// A server that is bound: clients can connect, and are answered as soon as it runs.
pub struct Server {
    api: Api,
    limits: Limits,
    socket: Option<OwnerSocket>,
    grpc: Option<(TcpListener, Guard)>,
    http: Option<TcpListener>,
    addresses: Addresses,
}

/// Where a server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The socket in the data directory.
    pub socket: Option<PathBuf>,
    /// gRPC over TCP.
    pub grpc: Option<SocketAddr>,
    /// HTTP.
    pub http: Option<SocketAddr>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses).field("limits", &self.limits).finish()
    }
}

impl Server {
    /// Binds the socket of `data_dir` only.
    ///
    /// # Errors
    /// As [`serve_socket`].
    pub async fn bind_socket(services: impl Into<Services>, data_dir: &Path) -> Result<Server> {
        let nothing_else = ServerConfig { http: "off".to_owned(), grpc: "off".to_owned() };
        Server::bind(services, &nothing_else, Some(data_dir)).await
    }

    /// Binds the socket of `data_dir` if there is one, and the addresses configured.
    ///
    /// # Errors
    /// * [`Error::Config`], naming the key, for an address that is no address, is not a loopback address, or is taken.
    ///   Another port than the one configured is never chosen.
    /// * [`Error::StoreInUse`] if a living process serves the socket.
    /// * [`Error::Io`] if the socket or the token of gRPC over TCP can't be made, or the token can't be used.
    pub async fn bind(services: impl Into<Services>, config: &ServerConfig, data_dir: Option<&Path>) -> Result<Server> {
        Server::on(Listeners::bind(config).await?, services, data_dir).await
    }

    /// As [`bind`](Self::bind), on ports that are bound already.
    pub(crate) async fn on(
        listeners: Listeners,
        services: impl Into<Services>,
        data_dir: Option<&Path>,
    ) -> Result<Server> {
        let services = services.into();
        let limits = services.limits.clone();
        let (grpc_address, http_address) = (listeners.grpc_address(), listeners.http_address());
        // Later, because it replaces what stands in the directory.
        let socket = match data_dir {
            Some(data_dir) => Some(socket::bind(data_dir).await?),
            None => None,
        };
        let token_file = services.token_file.clone().or_else(|| data_dir.map(token::token_path));
        // Last: with the socket the directory is ours, and nobody else writes a token.
        let grpc = match listeners.grpc {
            Some(listener) => Some((listener, guard(token_file, services.store_token.as_ref()).await?)),
            None => None,
        };
        let addresses = Addresses {
            socket: socket.as_ref().map(|socket| socket.file.path().to_owned()),
            grpc: grpc_address,
            http: http_address,
        };
        let api = Api::new(services, grpc_address);
        Ok(Server { api, limits, socket, grpc, http: listeners.http, addresses })
    }

    /// Where it is reached; the ports are those that were given where the configuration says 0.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Answers until `shutdown` completes, and then ends in order, within the limit for running commits and a few
    /// seconds. Cancel safety as [`serve_socket`].
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let Server { api, limits, socket, grpc, http, addresses: _ } = self;
        let closing = Closing::default();
        // Dropped with this future: connections live in tasks of their own.
        let _cut_at_last = closing.cut.clone().drop_guard();
        let mut listeners = JoinSet::new();
        let (listener, file) = socket.map(|socket| (socket.listener, socket.file)).unzip();
        if let Some(listener) = listener {
            listeners.spawn(serve_grpc(api.router(), limits.clone(), PrivateListener(listener), closing.clone()));
        }
        if let Some((listener, guard)) = grpc {
            let router = api.router().layer(axum::middleware::from_fn_with_state(guard, token::check));
            listeners.spawn(serve_grpc(router, limits.clone(), listener, closing.clone()));
        }
        if let Some(listener) = http {
            listeners.spawn(serve_http(http::router(api.clone()), limits.clone(), listener, closing.clone()));
        }
        tokio::select! {
            () = shutdown => {}
            () = look_after(&api, limits.lease) => {}
        }
        drain(&api, &limits, closing, listeners, file).await;
    }
}

/// Ports that are bound, and answered by nobody yet. What connects meanwhile waits.
pub(crate) struct Listeners {
    pub(super) grpc: Option<TcpListener>,
    pub(super) http: Option<TcpListener>,
}

impl Listeners {
    /// Binds the addresses configured.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub(crate) async fn bind(config: &ServerConfig) -> Result<Listeners> {
        let grpc = bind_tcp("atlasdb.server.grpc", &config.grpc).await?;
        let http = bind_tcp("atlasdb.server.http", &config.http).await?;
        Ok(Listeners { grpc, http })
    }

    /// A port for gRPC that the system chooses, and nothing else.
    pub(crate) async fn any() -> Result<Listeners> {
        Listeners::bind(&ServerConfig { http: "off".to_owned(), grpc: "127.0.0.1:0".to_owned() }).await
    }

    pub(crate) fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    pub(crate) fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

/// The tokens that calls over TCP may carry.
async fn guard(token_file: Option<PathBuf>, store_token: Option<&Token>) -> Result<Guard> {
    let by_file = match token_file {
        Some(path) => tokio::task::spawn_blocking(move || Guard::load(&path))
            .await
            .map_err(|error| Error::io("reading the server's token", io::Error::other(error)))??,
        None if store_token.is_some() => Guard::default(),
        None => {
            return Err(Error::Config {
                place: "atlasdb.server.grpc".to_owned(),
                reason: format!(
                    "a store without a directory has no place for the token of TCP: name a file for it in {}, or set \
                     server.grpc to off",
                    token::FILE_VARIABLE
                ),
            });
        }
    };
    Ok(store_token.into_iter().fold(by_file, Guard::and))
}

/// Aborts what is abandoned; never returns.
async fn look_after(api: &Api, lease: Duration) {
    let mut ticks = tokio::time::interval((lease / 4).max(Duration::from_millis(10)));
    loop {
        ticks.tick().await;
        api.transactions.reap(Instant::now());
    }
}

async fn drain(api: &Api, limits: &Limits, closing: Closing, mut listeners: JoinSet<()>, file: Option<SocketFile>) {
    api.transactions.start_draining();
    drop(file);
    closing.ending.cancel();
    if tokio::time::timeout(limits.drain, api.transactions.ended()).await.is_err() {
        tracing::warn!(after = ?limits.drain, "the server ends while commits are still running");
    }
    // Answers on their way get there; then calls without an end are ended; then whatever is left is cut.
    let mut closed = tokio::time::timeout(CLOSE_TIMEOUT, finished(&mut listeners)).await.is_ok();
    if !closed {
        api.stop.cancel();
        closed = tokio::time::timeout(CLOSE_TIMEOUT, finished(&mut listeners)).await.is_ok();
    }
    closing.cut.cancel();
    if !closed && tokio::time::timeout(CLOSE_TIMEOUT, finished(&mut listeners)).await.is_err() {
        tracing::warn!("connections could not be closed");
    }
    if tokio::time::timeout(limits.drain, api.transactions.abort_all()).await.is_err() {
        tracing::warn!("open transactions could not be aborted");
    }
}

async fn finished(listeners: &mut JoinSet<()>) {
    while listeners.join_next().await.is_some() {}
}

/// The two moments of the end.
#[derive(Clone, Default)]
pub(super) struct Closing {
    /// Nobody is let in, and connections close when their calls are done.
    pub(super) ending: CancellationToken,
    /// Connections break.
    pub(super) cut: CancellationToken,
}

pub(super) async fn serve_grpc<L: Listen>(router: axum::Router, limits: Limits, listener: L, closing: Closing) {
    let connections = Connections::new(listener, &limits, closing.cut);
    let served = tonic::transport::Server::builder()
        .max_concurrent_streams(CALLS_MAX)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_INTERVAL))
        .serve_with_incoming_shutdown(router, connections.stream(), closing.ending.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "a listener failed");
    }
}

pub(super) async fn serve_http(router: axum::Router, limits: Limits, listener: TcpListener, closing: Closing) {
    let connections = Connections::new(listener, &limits, closing.cut);
    let served = axum::serve(connections, router).with_graceful_shutdown(closing.ending.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "a listener failed");
    }
}

/// The address of a configuration, or nothing for `off`.
fn parse_address(key: &str, text: &str) -> Result<Option<SocketAddr>> {
    let refuse = |reason: String| Error::Config { place: key.to_owned(), reason };
    if text.eq_ignore_ascii_case("off") || text.is_empty() {
        return Ok(None);
    }
    // Not looked up: the name means this machine everywhere, whatever a resolver says.
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let address: SocketAddr = numeric.as_deref().unwrap_or(text).parse().map_err(|_| {
        refuse(format!("'{text}' is no address: write an address and a port such as 127.0.0.1:8422, or off"))
    })?;
    if !address.ip().is_loopback() {
        return Err(refuse(format!(
            "{address} can be reached from other machines, and nothing protects it there; use a loopback address such \
             as 127.0.0.1:{}",
            address.port()
        )));
    }
    Ok(Some(address))
}

/// Whether these addresses may be served.
///
/// # Errors
/// [`Error::Config`] as for [`Server::bind`], as far as it can be told without binding.
pub(crate) fn check_addresses(config: &ServerConfig) -> Result<()> {
    parse_address("atlasdb.server.grpc", &config.grpc)?;
    parse_address("atlasdb.server.http", &config.http)?;
    Ok(())
}

async fn bind_tcp(key: &str, text: &str) -> Result<Option<TcpListener>> {
    let Some(address) = parse_address(key, text)? else { return Ok(None) };
    let listener = TcpListener::bind(address).await.map_err(|error| Error::Config {
        place: key.to_owned(),
        reason: match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("{address} is taken by another process; set {key} to another port, or to off")
            }
            _ => format!("can't listen on {address}: {error}"),
        },
    })?;
    Ok(Some(listener))
}

// ---- connections

/// Something that accepts connections, of whoever may connect.
pub(super) trait Listen: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one. Cancel safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Lets in only the user that owns the process, and root.
struct PrivateListener(UnixListener);

impl Listen for PrivateListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.0.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if socket::is_trusted(peer.uid()) => return Ok(stream),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "another user's connection was refused"),
                // Gone before it said anything.
                Err(error) => tracing::debug!(%error, "a connection without credentials was refused"),
            }
        }
    }
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Calls are small and waited for.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Accepts connections as long as there is room.
struct Connections<L> {
    listener: L,
    room: Arc<Semaphore>,
    cut: CancellationToken,
}

impl<L: Listen> Connections<L> {
    fn new(listener: L, limits: &Limits, cut: CancellationToken) -> Connections<L> {
        Connections { listener, room: Arc::new(Semaphore::new(limits.connections_max)), cut }
    }

    async fn next(&mut self) -> Connection<L::Stream> {
        let room = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok(stream) => {
                    let cut = Box::pin(self.cut.clone().cancelled_owned());
                    return Connection { stream, cut, _room: room };
                }
                Err(error) => {
                    // Out of file descriptors, mostly. Trying at once would use a whole core for it.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn stream(mut self) -> impl Stream<Item = io::Result<Connection<L::Stream>>> {
        async_stream::stream! {
            loop {
                yield Ok(self.next().await);
            }
        }
    }
}

impl axum::serve::Listener for Connections<TcpListener> {
    type Io = Connection<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let connection = self.next().await;
            if let Ok(address) = connection.stream.peer_addr() {
                return (connection, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that takes up room while it lives, and breaks when it is cut.
struct Connection<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _room: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    /// Breaks if it is cut. A connection is always being read, so whoever reads is woken for it.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_served_and_the_error_names_the_key() {
        let key = "atlasdb.server.grpc";
        assert_eq!(parse_address(key, "off").expect("off"), None);
        for fine in ["127.0.0.1:0", "localhost:8422", "[::1]:8422"] {
            assert!(parse_address(key, fine).expect("loopback").is_some(), "{fine}");
        }
        for bad in ["0.0.0.0:8422", "[::]:8422", "192.168.1.1:8422", "8422", "127.0.0.1", "localhost:x", "on"] {
            let error = parse_address(key, bad).expect_err(bad);
            assert_eq!(error.code(), "CONFIG");
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
