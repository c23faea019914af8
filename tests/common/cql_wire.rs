//! A wire between a store and one Cassandra node that knows the messages on it (the native protocol in version 4, without
//! compression): it is cut around lightweight transactions when it is told to, and can change what the node says.
//!
//! It begins at the node's own address, on another port: the driver goes to the addresses that nodes tell, on the port that
//! it was given.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HEADER_LEN: usize = 9;
const QUERY: u8 = 0x07;
const RESULT: u8 = 0x08;
const PREPARE: u8 = 0x09;
const EXECUTE: u8 = 0x0A;
/// The kind of a result that tells the id of a prepared statement.
const PREPARED: [u8; 4] = [0, 0, 0, 4];

/// Where a wire is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// The node has done the next lightweight transaction and answered; the answer never arrives.
    BehindLightweight,
    /// The node gets the next lightweight transaction, and nobody waits for what becomes of it.
    WithLightweight,
    /// The node never gets the next lightweight transaction.
    BeforeLightweight,
    /// As the first, and the connection stays: the client waits in vain.
    InVain,
    /// The node never gets whatever comes next.
    BeforeAnything,
}

impl Cut {
    pub const ALL: [Cut; 5] =
        [Cut::BehindLightweight, Cut::WithLightweight, Cut::BeforeLightweight, Cut::InVain, Cut::BeforeAnything];
}

/// Takes connections and passes their messages on to the node.
#[derive(Clone)]
pub struct CqlWire {
    contact_point: String,
    orders: Arc<Orders>,
}

#[derive(Default)]
struct Orders {
    next: Mutex<Option<Cut>>,
    cuts: AtomicUsize,
    /// Ids of prepared lightweight transactions, which are the same on all connections.
    lightweight: Mutex<HashSet<Vec<u8>>>,
    /// What is read instead of what in the node's answers, of the same length.
    instead: Option<(Vec<u8>, Vec<u8>)>,
}

impl CqlWire {
    /// To the native port of a node.
    pub async fn before(host: &str) -> CqlWire {
        CqlWire::start(host, Orders::default()).await
    }

    /// The same, with an answer that says something else wherever it says `what`.
    pub async fn that_says(host: &str, what: &str, instead: &str) -> CqlWire {
        assert_eq!(what.len(), instead.len(), "the lengths in the messages stay as they are");
        let instead = Some((what.as_bytes().to_owned(), instead.as_bytes().to_owned()));
        CqlWire::start(host, Orders { instead, ..Orders::default() }).await
    }

    async fn start(host: &str, orders: Orders) -> CqlWire {
        let listener = TcpListener::bind((host, 0)).await.expect("a port is free");
        let contact_point = listener.local_addr().expect("it is bound").to_string();
        let wire = CqlWire { contact_point, orders: Arc::new(orders) };
        let (host, orders) = (host.to_owned(), Arc::clone(&wire.orders));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (host, orders) = (host.clone(), Arc::clone(&orders));
                tokio::spawn(async move {
                    // A node that is not there is one that hangs up.
                    if let Ok(node) = TcpStream::connect((&*host, 9042)).await {
                        // Messages are small, and each is waited for.
                        let _ = (client.set_nodelay(true), node.set_nodelay(true));
                        pass_on(client, node, &orders).await;
                    }
                });
            }
        });
        wire
    }

    pub fn contact_point(&self) -> String {
        self.contact_point.clone()
    }

    /// One connection will be cut so, the one that gives occasion to it first.
    pub fn order(&self, cut: Cut) {
        *self.orders.next.lock() = Some(cut);
    }

    pub fn is_done(&self) -> bool {
        self.orders.next.lock().is_none()
    }

    pub fn cuts(&self) -> usize {
        self.orders.cuts.load(Ordering::SeqCst)
    }
}

/// What is known about the requests on one connection that have no answer yet, by their stream.
#[derive(Default)]
struct Unanswered {
    /// Lightweight transactions that are being prepared.
    preparing: HashSet<[u8; 2]>,
    doomed: HashMap<[u8; 2], Cut>,
}

async fn pass_on(client: TcpStream, node: TcpStream, orders: &Orders) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_node, mut to_node) = node.into_split();
    let unanswered = Mutex::new(Unanswered::default());
    let forward = async {
        while let Some(message) = message(&mut from_client).await {
            let stream = stream_of(&message);
            let is_lightweight = orders.is_lightweight(&message);
            if message[4] == PREPARE && is_lightweight {
                unanswered.lock().preparing.insert(stream);
            }
            let is_sent = matches!(message[4], QUERY | EXECUTE);
            let cut = orders.next.lock().take_if(|cut| is_sent && (is_lightweight || *cut == Cut::BeforeAnything));
            if let Some(cut) = cut {
                orders.cuts.fetch_add(1, Ordering::SeqCst);
                match cut {
                    Cut::BeforeLightweight | Cut::BeforeAnything => return,
                    Cut::WithLightweight => {
                        let _ = to_node.write_all(&message).await;
                        return;
                    }
                    Cut::BehindLightweight | Cut::InVain => {
                        unanswered.lock().doomed.insert(stream, cut);
                    }
                }
            }
            if to_node.write_all(&message).await.is_err() {
                return;
            }
        }
    };
    let backward = async {
        while let Some(mut message) = message(&mut from_node).await {
            let stream = stream_of(&message);
            let doomed = unanswered.lock().doomed.remove(&stream);
            match doomed {
                Some(Cut::InVain) => continue,
                Some(_) => return,
                None => {}
            }
            if unanswered.lock().preparing.remove(&stream) {
                orders.learn(&message);
            }
            orders.rewrite(&mut message);
            if to_client.write_all(&message).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = forward => {}
        () = backward => {}
    }
}

/// A whole message, with its header; nothing at the end.
async fn message(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut message = vec![0; HEADER_LEN];
    from.read_exact(&mut message).await.ok()?;
    let len = u32::from_be_bytes([message[5], message[6], message[7], message[8]]);
    message.resize(HEADER_LEN + usize::try_from(len).ok()?, 0);
    from.read_exact(&mut message[HEADER_LEN..]).await.ok()?;
    Some(message)
}

fn stream_of(message: &[u8]) -> [u8; 2] {
    [message[2], message[3]]
}

impl Orders {
    /// A change of data with a condition, or its preparation.
    fn is_lightweight(&self, message: &[u8]) -> bool {
        let body = &message[HEADER_LEN..];
        match message[4] {
            QUERY | PREPARE => {
                let text = String::from_utf8_lossy(body.get(4..).unwrap_or_default());
                let text = text.trim_start();
                ["INSERT", "UPDATE", "DELETE"].iter().any(|verb| text.starts_with(verb)) && text.contains(" IF ")
            }
            EXECUTE => short_bytes(body).is_some_and(|id| self.lightweight.lock().contains(id)),
            _ => false,
        }
    }

    /// The id of a lightweight transaction that was prepared.
    fn learn(&self, answer: &[u8]) {
        let body = &answer[HEADER_LEN..];
        // Without flags nothing stands before the kind of the result.
        if answer[4] == RESULT && answer[1] == 0 && body.starts_with(&PREPARED) {
            let id = short_bytes(&body[PREPARED.len()..]).expect("a result of this kind has an id");
            self.lightweight.lock().insert(id.to_owned());
        }
    }

    fn rewrite(&self, message: &mut [u8]) {
        let Some((what, instead)) = &self.instead else { return };
        for at in HEADER_LEN..=message.len().saturating_sub(what.len()).max(HEADER_LEN) {
            if message[at..].starts_with(what) {
                message[at..at + what.len()].copy_from_slice(instead);
            }
        }
    }
}

fn short_bytes(body: &[u8]) -> Option<&[u8]> {
    let len = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    body.get(2..2 + len)
}
