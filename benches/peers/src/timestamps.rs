//! Fresh timestamps: how many there are in a second, and how long one takes.
//!
//! Beside them is a bare echo: eight bytes there and back over a socket of the same kind, with nothing in between. With a
//! connection for each client and a request for each timestamp no protocol does better.

use crate::bars;
use crate::contenders::CACHE_BYTES;
use crate::contenders::atlas::{on_rocksdb, runtime};
use crate::measure::{Work, median, settle};
use crate::options::Plan;
use anyhow::{Context, Result};
use atlas::Atlas;
use atlas::ops::Operations;
use atlas::server::RemoteAtlas;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;

const CLIENTS: [usize; 3] = [1, 16, 64];
/// In the process a call takes less than looking at the clock: one in so many is timed.
const CALLS_PER_LOOK: u64 = 64;

/// How clients reach the one who issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    InProcess,
    /// Over the socket, each client by a connection of its own.
    Connections,
    /// Over the socket, all clients by one connection.
    OneConnection,
    /// Eight bytes there and back, each client by a connection of its own.
    Echo,
}

impl Way {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Way::InProcess => "in the process",
            Way::Connections => "over the socket, a connection each",
            Way::OneConnection => "over the socket, one connection",
            Way::Echo => "a bare echo over a socket, a connection each",
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Timestamps {
    pub(crate) way: Way,
    pub(crate) clients: usize,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) bar_per_second: Option<f64>,
    pub(crate) bar_p99_us: Option<f64>,
}

impl Timestamps {
    pub(crate) fn is_met(&self) -> Option<bool> {
        let fast = self.bar_per_second.map(|bar| self.per_second >= bar)?;
        Some(fast && self.bar_p99_us.is_none_or(|bar| self.p99_us < bar))
    }
}

pub(crate) fn run(plan: &Plan) -> Result<Vec<Timestamps>> {
    let directory = plan.dir.join("timestamps");
    // The server has threads of its own, as in a process of its own. They share the processor all the same.
    let (server, clients) = (runtime()?, runtime()?);
    let atlas = server.block_on(Atlas::open(on_rocksdb(&directory, CACHE_BYTES, true)))?;
    // Where its path is short enough for a socket.
    let echo = std::env::temp_dir().join(format!("atlas-echo-{}", std::process::id()));
    let listener = server.block_on(async { UnixListener::bind(&echo) })?;
    drop(server.spawn(answer_all(listener)));
    let mut measured = Vec::new();
    for (way, number) in [Way::InProcess, Way::Connections, Way::OneConnection, Way::Echo]
        .into_iter()
        .flat_map(|way| CLIENTS.map(|number| (way, number)))
    {
        let mut rounds = Vec::new();
        for _ in 0..plan.rounds {
            let remotes = clients.block_on(connect(&directory, way, number))?;
            settle(plan.patience);
            let begun = Instant::now();
            let until = begun + plan.round;
            let work = match way {
                Way::InProcess => in_process(&clients, &atlas, number, until)?,
                Way::Connections | Way::OneConnection => over_socket(&clients, remotes, until)?,
                Way::Echo => echoes(&clients, &echo, number, until)?,
            };
            rounds.push((work.units as f64 / begun.elapsed().as_secs_f64(), work.micros_at(0.5), work.micros_at(0.99)));
        }
        let of = |number: fn(&(f64, f64, f64)) -> f64| median(rounds.iter().map(number).collect());
        let is_most = number == CLIENTS[CLIENTS.len() - 1];
        let row = Timestamps {
            way,
            clients: number,
            per_second: of(|round| round.0),
            p50_us: of(|round| round.1),
            p99_us: of(|round| round.2),
            bar_per_second: match way {
                Way::InProcess => Some(bars::TIMESTAMPS_IN_PROCESS),
                Way::Connections | Way::OneConnection => is_most.then_some(bars::TIMESTAMPS_OVER_SOCKET),
                Way::Echo => None,
            },
            bar_p99_us: (is_most && !matches!(way, Way::InProcess | Way::Echo)).then_some(bars::TIMESTAMP_P99_US),
        };
        eprintln!("  {}, {number} clients: {:.0}/s", way.title(), row.per_second);
        measured.push(row);
    }
    server.block_on(atlas.close())?;
    std::fs::remove_file(&echo)?;
    std::fs::remove_dir_all(&directory)?;
    Ok(measured)
}

fn in_process(runtime: &Runtime, atlas: &Atlas, clients: usize, until: Instant) -> Result<Work> {
    gather(
        runtime,
        (0..clients).map(|_| {
            let oracle = atlas.transactions().oracle().clone();
            async move {
                let mut work = Work::none();
                while Instant::now() < until {
                    let begun = Instant::now();
                    oracle.fresh().await?;
                    work.count(begun, CALLS_PER_LOOK, 0, 0);
                    for _ in 1..CALLS_PER_LOOK {
                        oracle.fresh().await?;
                    }
                    // Nothing above has to wait, and the others are to have their turn.
                    tokio::task::yield_now().await;
                }
                anyhow::Ok(work)
            }
        }),
    )
}

fn over_socket(runtime: &Runtime, remotes: Vec<RemoteAtlas>, until: Instant) -> Result<Work> {
    gather(
        runtime,
        remotes.into_iter().map(|remote| async move {
            let mut work = Work::none();
            while Instant::now() < until {
                let begun = Instant::now();
                remote.fresh_timestamp().await?;
                work.count(begun, 1, 0, 0);
            }
            anyhow::Ok(work)
        }),
    )
}

fn echoes(runtime: &Runtime, socket: &Path, clients: usize, until: Instant) -> Result<Work> {
    gather(
        runtime,
        (0..clients).map(|_| {
            let socket = socket.to_owned();
            async move {
                let mut stream = UnixStream::connect(socket).await?;
                let (mut work, mut number) = (Work::none(), [0; 8]);
                while Instant::now() < until {
                    let begun = Instant::now();
                    stream.write_all(&number).await?;
                    stream.read_exact(&mut number).await?;
                    work.count(begun, 1, 0, 0);
                }
                anyhow::Ok(work)
            }
        }),
    )
}

async fn answer_all(listener: UnixListener) -> std::io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        drop(tokio::spawn(async move {
            let mut number = [0; 8];
            while stream.read_exact(&mut number).await.is_ok() && stream.write_all(&number).await.is_ok() {}
        }));
    }
}

/// What each client asks; nothing in the process.
async fn connect(directory: &Path, way: Way, clients: usize) -> Result<Vec<RemoteAtlas>> {
    let connect = async || atlas::server::connect(directory).await?.context("nobody answers at the socket");
    match way {
        Way::InProcess | Way::Echo => Ok(Vec::new()),
        Way::OneConnection => Ok(vec![connect().await?; clients]),
        Way::Connections => {
            let mut remotes = Vec::new();
            for _ in 0..clients {
                remotes.push(connect().await?);
            }
            Ok(remotes)
        }
    }
}

fn gather<F>(runtime: &Runtime, clients: impl Iterator<Item = F>) -> Result<Work>
where
    F: Future<Output = Result<Work>> + Send + 'static,
{
    runtime.block_on(async {
        let started: Vec<_> = clients.map(tokio::spawn).collect();
        let mut work = Work::none();
        for client in started {
            work = work.add(&client.await??);
        }
        Ok(work)
    })
}
