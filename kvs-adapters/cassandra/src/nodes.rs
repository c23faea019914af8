//! Which nodes answer.

use crate::errors::{Trouble, unavailable};
use crate::session::Cluster;
use atlas_kvs::{Availability, KvsError, Result};
use futures::future::join_all;
use scylla::cluster::Node;
use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::statement::{Consistency, Statement};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a node may take to say that it is there.
const PROBE: Duration = Duration::from_secs(3);

impl Cluster {
    /// All nodes, and those of them that do not answer, by their addresses.
    async fn roll_call(&self) -> Result<(usize, Vec<String>)> {
        let session = self.session()?;
        let state = session.get_cluster_state();
        let asked = state.get_nodes_info().iter().map(|node| {
            let session = Arc::clone(&session);
            async move { (!answers(&session, node).await).then(|| node.address.to_string()) }
        });
        let silent: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        Ok((state.get_nodes_info().len(), silent))
    }

    /// All nodes, by their addresses.
    pub(crate) fn addresses(&self) -> Result<Vec<String>> {
        let state = self.session()?.get_cluster_state();
        Ok(state.get_nodes_info().iter().map(|node| node.address.to_string()).collect())
    }

    pub(crate) async fn availability(&self) -> Availability {
        let (nodes, silent) = match self.roll_call().await {
            Ok(answers) => answers,
            Err(error) => return Availability::NoQuorum(error.to_string()),
        };
        if silent.is_empty() && nodes > 0 {
            return Availability::All;
        }
        let copies = self.config.replication.copies();
        let who = missing(nodes, &silent);
        // Some cell may have its copies on just those nodes that are silent.
        let quorum = copies / 2 + 1;
        if silent.len() <= copies - quorum { Availability::Quorum(who) } else { Availability::NoQuorum(who) }
    }

    /// Refuses, before anything is done, what needs every node.
    pub(crate) async fn require_all_nodes(&self, doing: &str) -> Result<()> {
        let (nodes, silent) = self.roll_call().await?;
        match silent.is_empty() {
            true => Ok(()),
            false => Err(unavailable(format!("{doing} waits for all nodes: {}", missing(nodes, &silent)), None)),
        }
    }

    /// Adds to an error of an operation that asks all replicas which nodes it may lie with.
    pub(crate) async fn name_the_silent(&self, trouble: Trouble) -> Trouble {
        let (reason, source, known) = match trouble {
            Trouble::Final(KvsError::Unavailable { reason, source }) => (reason, source, true),
            Trouble::Final(KvsError::Indeterminate { reason, source }) => (reason, source, false),
            other => return other,
        };
        let who = match self.roll_call().await {
            Ok((nodes, silent)) if !silent.is_empty() => missing(nodes, &silent),
            _ => "all of them answer by now".to_owned(),
        };
        let reason = format!("this asks all replicas, and {who} ({reason})");
        Trouble::Final(match known {
            true => KvsError::Unavailable { reason, source },
            false => KvsError::Indeterminate { reason, source },
        })
    }
}

fn missing(nodes: usize, silent: &[String]) -> String {
    format!("{} of {nodes} nodes do not answer: {}", silent.len(), silent.join(", "))
}

async fn answers(session: &scylla::client::session::Session, node: &Arc<Node>) -> bool {
    if !node.is_connected() {
        return false;
    }
    let mut question = Statement::new("SELECT key FROM system.local WHERE key = 'local'");
    question.set_load_balancing_policy(Some(SingleTargetLoadBalancingPolicy::new(
        NodeIdentifier::Node(Arc::clone(node)),
        None,
    )));
    question.set_consistency(Consistency::One);
    matches!(timeout(PROBE, session.query_unpaged(question, ())).await, Ok(Ok(_)))
}
