//! A directory with configurations of one namespace on the server.

use crate::common::Place;
use crate::stage::{Ran, Running, Server, Stage, until};
use crate::{LANE, LEASE};
use atlas::kvs_api::{AtomicScan, KeyValueService, RowRange, TableRef};
use futures::TryStreamExt;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) place: Place,
}

impl Scene {
    /// With `atlas.yml`, which names a store that nobody has made yet.
    pub(crate) fn new() -> Scene {
        let scene = Scene { stage: Stage::new(), place: Place::new(LANE.store) };
        scene.configure("atlas.yml", "127.0.0.1:0", "");
        scene
    }

    /// And a table with a cell in it.
    pub(crate) fn with_table() -> Scene {
        let scene = Scene::new();
        scene.stage.atlas("table create t").ok();
        scene.stage.atlas("kv put t r c v").ok();
        scene
    }

    /// A configuration of this store. `changes` are lines of the form `key: value` for the server's block.
    pub(crate) fn configure(&self, name: &str, grpc: &str, changes: &str) {
        self.stage.write(
            name,
            &format!(
                "atlasdb:\n  namespace: {}\n  leader: {{lease: {LEASE}}}\n  server: {{http: off, grpc: \"{grpc}\"}}\n  \
                 backup: {{lockLease: {LEASE}}}\n{}{changes}",
                self.place.namespace(),
                self.place.yaml(&self.stage.path("")),
            ),
        );
    }

    pub(crate) fn atlas(&self, line: &str) -> Ran {
        self.stage.atlas(line)
    }

    /// `atlas serve`, ready, and where it answers.
    pub(crate) fn serve(&self) -> (Server, String) {
        let (server, line) = Server::start_and_say(&mut self.stage.command("serve -o json"));
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        (server, said["data"]["serving"]["grpc"].as_str().unwrap().to_owned())
    }

    /// `atlas serve --standby`, with health on a port, as soon as it answers there.
    pub(crate) fn stand_by(&self) -> StandBy {
        let http = format!("127.0.0.1:{}", free_port());
        let line = format!("serve --standby --http {http}");
        let running = Running::start(&line, &mut self.stage.command(&line));
        until("the stand-by answers", || get(&http, "/healthz").is_some());
        StandBy { running, http }
    }

    /// What the store's own table holds, by row.
    pub(crate) async fn records(&self) -> Vec<(String, String)> {
        let kvs: Arc<dyn KeyValueService> = self.place.open().await;
        let table = TableRef::new("_atlas").unwrap();
        let cells: Vec<_> = kvs.scan_atomic(&table, AtomicScan::new(RowRange::all())).try_collect().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        cells.into_iter().map(|(cell, value)| (text(&cell.row), text(&value))).collect()
    }

    pub(crate) async fn record(&self, name: &str) -> serde_json::Value {
        let found = self.records().await.into_iter().find(|(row, _)| row == name);
        serde_json::from_str(&found.unwrap_or_else(|| panic!("there is no record {name}")).1).unwrap()
    }
}

/// A server that waits for its turn, or has got it.
pub(crate) struct StandBy {
    pub(crate) running: Running,
    pub(crate) http: String,
}

impl StandBy {
    pub(crate) fn leads(&self) -> bool {
        get(&self.http, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    pub(crate) fn until_it_leads(&self) {
        until("the stand-by has taken over", || self.leads() || self.running.has_ended());
        assert!(!self.running.has_ended(), "the stand-by has ended");
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        let answer = get(&self.http, "/status").unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Asks it to end, and sees that it does.
    pub(crate) fn stop(self) -> Ran {
        self.running.terminate();
        self.running.end()
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The whole answer, if there is one.
pub(crate) fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}
