//! A store on three real nodes, with `nodetool`, `cqlsh` and `ssh` in the path as an operator has them.

use super::common::cassandra::{self, Breakable};
use super::load::until;
use super::stage::{Ran, Running, Stage};
use atlas::Atlas;
use atlas::config::{AtlasConfig, Sources, load};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The nodes' names, as the page has them.
pub(crate) const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) namespace: String,
}

impl Scene {
    /// With `app.yml`, the configuration of a store in the namespace, which has the commands of the page.
    pub(crate) fn new(namespace: &str) -> Scene {
        // Ends the program where there are no such nodes.
        let _ = Breakable::of_three();
        // One that an earlier run left behind would be a store that is not ours. It stays in the end, for whoever looks for the
        // reason of a failure.
        cassandra::drop_namespace(namespace);
        let scene = Scene { stage: Stage::on_server(|_, _| String::new()), namespace: namespace.to_owned() };
        scene.install_tools();
        // What runs them in this process has the path of this process.
        let path = format!("export PATH='{}':\"$PATH\"", scene.stage.path("bin").display());
        let commands = commands_of_the_page().replace("Command: |\n", &format!("Command: |\n      {path}\n"));
        let settings = cassandra::settings();
        scene.stage.write(
            "app.yml",
            &format!(
                "atlasdb:\n  namespace: {namespace}\n  backup: {{settleTimeout: 3s}}\n  server: {{http: off, grpc: \
                 \"127.0.0.1:0\"}}\n  keyValueService:\n    type: cassandra\n    contactPoints: \
                 \"{}\"\n    replicationFactor: {}\n    commandTimeout: 5m\n{commands}",
                settings.contact_points, settings.replication_factor,
            ),
        );
        scene
    }

    pub(crate) fn config(&self) -> AtlasConfig {
        load(&Sources::only_file(self.stage.path("app.yml"), None)).expect("it is fine").config
    }

    /// The store, in this process; it answers the command line.
    pub(crate) async fn open(&self) -> Atlas {
        Atlas::open(self.config()).await.expect("the store opens")
    }

    pub(crate) fn keyspace(&self) -> String {
        format!("atlas_{}", self.namespace)
    }

    /// `atlas` on the store, while this process does other things.
    pub(crate) fn begin(&self, line: &str) -> Running {
        Running::start(line, &mut self.stage.command_with("app.yml", line))
    }

    pub(crate) async fn atlas(&self, line: &str) -> Ran {
        let mut command = self.stage.command_with("app.yml", line);
        let line = line.to_owned();
        tokio::task::spawn_blocking(move || Ran::new(&line, crate::stage::output(&mut command))).await.expect("it ends")
    }

    /// Removes the store for good.
    pub(crate) async fn destroy(&self) {
        let namespace = self.namespace.clone();
        tokio::task::spawn_blocking(move || cassandra::drop_namespace(&namespace)).await.expect("it is removed");
    }

    fn install_tools(&self) {
        let script = crate::stage::checkout::file("scripts/cassandra");
        let variable = |name: &str| format!("export {name}='{}'", std::env::var(name).unwrap_or_default());
        // The stage's programs inherit nothing, and its home is another one.
        let environment = ["HOME", "ATLAS_CASSANDRA_RUN", "ATLAS_CASSANDRA_NET"].map(variable).join("\n");
        let control = self.stage.path("control");
        std::fs::create_dir_all(&control).expect("it can be made");
        let control = control.display();
        // A test may hold a snapshot back, learns when it is done, and may do something right before any command.
        self.tool(
            "nodetool",
            &format!(
                "{environment}\nnumber=${{NODE##*-}}\nif [ -e '{control}/held' ] && [ \"$1\" = snapshot ]; then\n    \
                 until [ -e '{control}/go-'\"$NODE\" ]; do sleep 0.05; done\nfi\n\
                 if [ -e '{control}/before-'\"$1-$NODE\" ]; then sh -e '{control}/before-'\"$1-$NODE\" || exit 1; fi\n\
                 '{script}' nodetool \"$number\" \"$@\" || exit\n\
                 if [ \"$1\" = snapshot ]; then : > '{control}/done-'\"$NODE\"; fi"
            ),
        );
        self.tool("cqlsh", &format!("{environment}\nexec '{script}' cqlsh \"$@\""));
        // A shell on a node, which is this machine: only the directories lie elsewhere.
        let scratch = self.stage.path("scratch");
        std::fs::create_dir_all(&scratch).expect("it can be made");
        self.tool(
            "ssh",
            &format!(
                "if [ \"$1\" = -n ]; then shift; exec </dev/null; fi\nexport NODE=\"$1\"\nshift\nexec sh -c \"$(printf \
                 '%s' \"$*\" | sed -e 's|/var/lib/cassandra/data|'\"{run}/n${{NODE##*-}}/data\"'|g' -e \
                 's|/var/tmp/atlas|{scratch}/'\"$NODE\"'|g')\"",
                run = std::env::var("ATLAS_CASSANDRA_RUN").unwrap_or_default(),
                scratch = scratch.display(),
            ),
        );
    }

    fn tool(&self, name: &str, script: &str) {
        let path = self.stage.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it can be made executable");
    }

    fn control(&self, name: &str) -> PathBuf {
        self.stage.path("control").join(name)
    }

    /// From now on no node takes a snapshot before it is let.
    pub(crate) fn hold_snapshots(&self) {
        self.stage.write("control/held", "");
    }

    /// Lets a node take its snapshot, and waits until it has.
    pub(crate) async fn let_snapshot(&self, node: &str) {
        self.stage.write(&format!("control/go-{node}"), "");
        until(&format!("the snapshot of {node}"), || self.control(&format!("done-{node}")).exists()).await;
    }

    /// Runs a script whenever a node is about to be told this by `nodetool`.
    pub(crate) fn before(&self, command: &str, node: &str, script: &str) {
        self.stage.write(&format!("control/before-{command}-{node}"), script);
    }

    pub(crate) fn not_before(&self, command: &str, node: &str) {
        std::fs::remove_file(self.control(&format!("before-{command}-{node}"))).expect("it is there");
    }

    /// The data directory of a node.
    pub(crate) fn data_of(node: &str) -> PathBuf {
        let run = std::env::var_os("ATLAS_CASSANDRA_RUN").expect("the nodes are ours");
        Path::new(&run).join(node.replace("node-", "n")).join("data")
    }
}

const PAGE: &str = include_str!("../../docs/backup-cassandra.md");

/// The configuration in the page.
fn commands_of_the_page() -> String {
    let (_, rest) = PAGE.split_once("```yaml\n").expect("the page has one");
    rest.split("```").next().expect("it ends").to_owned()
}

/// A block of shell in the page, and where it is run.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) place: String,
    pub(crate) script: String,
}

/// The blocks of a section of the page, in their order.
pub(crate) fn blocks_of(section: &str) -> Vec<Block> {
    let (_, rest) = PAGE.split_once(&format!("\n## {section}\n")).expect("the page has it");
    let section = rest.split("\n## ").next().expect("it ends");
    let blocks = section.split("```sh").skip(1).map(|block| {
        let (place, script) = block.split_once('\n').expect("a block has lines");
        let script = script.split("```").next().expect("it ends").to_owned();
        Block { place: place.trim().to_owned(), script }
    });
    blocks.collect()
}
