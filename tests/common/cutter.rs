//! A wire that is cut when it is told to: between a store and its server.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// How long the server is given to do what it was told before the wire is cut.
const TIME_TO_APPLY: Duration = Duration::from_millis(200);

/// Where a wire is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Behind whatever the client sends next: the server has it, and its answer never arrives.
    BehindAnything,
    /// Before whatever the client sends next: the server never gets it.
    BeforeAnything,
    /// Behind the next COMMIT, or the next statement that writes several tables and is a transaction by itself.
    BehindCommit,
    /// Before it.
    BeforeCommit,
}

impl Cut {
    pub const ALL: [Cut; 4] = [Cut::BehindAnything, Cut::BeforeAnything, Cut::BehindCommit, Cut::BeforeCommit];

    fn is_meant(self, sent: &[u8], prepared: &Prepared) -> bool {
        match self {
            Cut::BehindAnything | Cut::BeforeAnything => true,
            Cut::BehindCommit | Cut::BeforeCommit => find(sent, b"COMMIT").is_some() || prepared.are_run_by(sent),
        }
    }

    fn is_delivered(self) -> bool {
        matches!(self, Cut::BehindAnything | Cut::BehindCommit)
    }
}

/// The statements of a connection that are transactions of several tables, by the names under which they were prepared.
#[derive(Default)]
struct Prepared(Vec<Vec<u8>>);

impl Prepared {
    /// Looks for them in what the client sends: a name, `s` and a number, in front of each text.
    fn note(&mut self, sent: &[u8]) {
        let mut rest = sent;
        while let Some(place) = find(rest, b"\0WITH w") {
            let name: Vec<u8> = rest[..place].iter().rev().take_while(|byte| byte.is_ascii_digit()).copied().collect();
            self.0.push(b"s".iter().chain(name.iter().rev()).copied().collect());
            rest = &rest[place + 1..];
        }
    }

    fn are_run_by(&self, sent: &[u8]) -> bool {
        self.0.iter().any(|name| find(sent, &[b"\0", &name[..], b"\0"].concat()).is_some())
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Takes connections and passes them on to the server.
#[derive(Clone)]
pub struct Cutter {
    port: u16,
    order: Arc<Mutex<Option<Cut>>>,
    cuts: Arc<AtomicUsize>,
}

impl Cutter {
    /// To a server on a port of a host, or in the directory of a Unix socket.
    pub async fn before(host: &str, port: u16) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let own_port = listener.local_addr().expect("it is bound").port();
        let cutter = Cutter { port: own_port, order: Arc::default(), cuts: Arc::default() };
        let (host, accepting) = (host.to_owned(), cutter.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (host, cutter) = (host.clone(), accepting.clone());
                tokio::spawn(async move {
                    // A server that is not there is one that hangs up.
                    if host.starts_with('/') {
                        let server = UnixStream::connect(format!("{host}/.s.PGSQL.{port}")).await;
                        if let Ok(server) = server {
                            cutter.pass_on(client, server).await;
                        }
                    } else if let Ok(server) = TcpStream::connect((&*host, port)).await {
                        cutter.pass_on(client, server).await;
                    }
                });
            }
        });
        cutter
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// One connection will be cut so, the one that comes first.
    pub fn order(&self, cut: Cut) {
        *self.order.lock() = Some(cut);
    }

    pub fn is_done(&self) -> bool {
        self.order.lock().is_none()
    }

    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }

    async fn pass_on(&self, client: TcpStream, server: impl AsyncRead + AsyncWrite) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = tokio::io::split(server);
        let deaf = AtomicBool::new(false);
        let forward = async {
            let mut buffer = vec![0; 1 << 16];
            let mut prepared = Prepared::default();
            while let Ok(len @ 1..) = from_client.read(&mut buffer).await {
                let sent = &buffer[..len];
                let cut = self.order.lock().take_if(|cut| cut.is_meant(sent, &prepared));
                prepared.note(sent);
                if let Some(cut) = cut {
                    self.cuts.fetch_add(1, Ordering::SeqCst);
                    if cut.is_delivered() {
                        deaf.store(true, Ordering::SeqCst);
                        let _ = to_server.write_all(sent).await;
                        tokio::time::sleep(TIME_TO_APPLY).await;
                    }
                    return;
                }
                if to_server.write_all(sent).await.is_err() {
                    return;
                }
            }
        };
        let backward = async {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(len @ 1..) = from_server.read(&mut buffer).await {
                if deaf.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                if to_client.write_all(&buffer[..len]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = forward => {}
            () = backward => {}
        }
    }
}
