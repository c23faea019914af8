//! Where the cluster is and how it is spoken to.

use atlas_kvs::{KvsError, Result};
use std::fmt;
use std::time::Duration;

/// How a [`CassandraStore`](crate::CassandraStore) is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CassandraConfig {
    /// Nodes to begin with, as `host` or `host:port`; the others are learnt from them. At least one.
    pub contact_points: Vec<String>,
    /// Which of several stores in the cluster: each has a keyspace of its own. Any text of at least one character.
    pub namespace: String,
    /// The replication that the keyspace is made with, and must have if it is there already.
    pub replication: Replication,
    /// Who to log in as, where the cluster asks.
    pub user: Option<String>,
    /// The password that goes with `user`.
    pub password: Option<Password>,
    /// How long to wait for a connection to a node, logging in included.
    pub connect_timeout: Duration,
    /// How long to wait for one answer. Longer than the time-outs of the servers, which know more about what happened.
    /// A write that may be repeated is given up after twice this time.
    pub request_timeout: Duration,
    /// How many requests a single call may have under way.
    pub concurrency: usize,
    /// How many keys an index partition takes before it is split. Long keys count more than once.
    pub bucket_keys_max: usize,
    /// How old an entry of the index must be before it is removed because its cell is empty: clocks of processes that
    /// share the store may differ by this, less four times `request_timeout`.
    pub index_grace: Duration,
}

impl CassandraConfig {
    /// The defaults for a namespace on these nodes: one copy of everything, no login.
    pub fn new(contact_points: impl IntoIterator<Item = impl Into<String>>, namespace: impl Into<String>) -> Self {
        CassandraConfig {
            contact_points: contact_points.into_iter().map(Into::into).collect(),
            namespace: namespace.into(),
            replication: Replication::Simple { factor: 1 },
            user: None,
            password: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(12),
            concurrency: 64,
            bucket_keys_max: 10_000,
            index_grace: Duration::from_secs(300),
        }
    }

    /// The keyspace of the namespace.
    pub fn keyspace(&self) -> String {
        crate::names::keyspace(&self.namespace)
    }

    /// As [`new`](CassandraConfig::new), with what these variables say: `ATLAS_CASSANDRA_CONTACT_POINTS` (separated by
    /// commas; required), `ATLAS_CASSANDRA_REPLICATION` (the number of copies), `ATLAS_CASSANDRA_USER` and
    /// `ATLAS_CASSANDRA_PASSWORD`.
    ///
    /// # Errors
    /// [`KvsError::Misconfigured`] if there are no contact points, or the number of copies is none.
    pub fn from_env(namespace: impl Into<String>) -> Result<CassandraConfig> {
        CassandraConfig::from_variables(namespace.into(), |name| {
            std::env::var(name).ok().filter(|text| !text.is_empty())
        })
    }

    fn from_variables(namespace: String, variable: impl Fn(&str) -> Option<String>) -> Result<CassandraConfig> {
        let points = variable("ATLAS_CASSANDRA_CONTACT_POINTS")
            .ok_or_else(|| refused("ATLAS_CASSANDRA_CONTACT_POINTS is not set: which nodes?".to_owned()))?;
        let points = points.split(',').map(str::trim).filter(|point| !point.is_empty()).map(str::to_owned);
        let mut config = CassandraConfig::new(points.collect::<Vec<_>>(), namespace);
        if let Some(factor) = variable("ATLAS_CASSANDRA_REPLICATION") {
            let number = factor.parse().ok().filter(|&factor| factor > 0);
            let factor = number
                .ok_or_else(|| refused(format!("ATLAS_CASSANDRA_REPLICATION is '{factor}', not a number of copies")))?;
            config.replication = Replication::Simple { factor };
        }
        config.user = variable("ATLAS_CASSANDRA_USER");
        config.password = variable("ATLAS_CASSANDRA_PASSWORD").map(Password::from);
        Ok(config)
    }

    /// Refuses what could not work.
    pub(crate) fn check(&self) -> Result<()> {
        let problem = if self.contact_points.is_empty() {
            "there are no contact points: name at least one node"
        } else if self.namespace.is_empty() {
            "a namespace has at least one character"
        } else if self.replication.copies() == 0 {
            "the keyspace would have no copy of anything: set a replication factor of at least 1"
        } else if self.user.is_some() != self.password.is_some() {
            "user and password go together: set both or none"
        } else if self.concurrency == 0 || self.bucket_keys_max < 2 || self.request_timeout.is_zero() {
            "concurrency must be at least 1, bucket_keys_max at least 2, and request_timeout more than nothing"
        } else if self.index_grace < self.request_timeout.saturating_mul(4) {
            "index_grace must be at least four times request_timeout: a write under way must not lose its index entry"
        } else {
            return Ok(());
        };
        Err(refused(problem.to_owned()))
    }

    /// How long a write that may be repeated is repeated.
    pub(crate) fn write_patience(&self) -> Duration {
        self.request_timeout.saturating_mul(2)
    }

    /// How long nodes may take to agree on the schema. A node that has missed a change asks the others for it after a minute.
    pub(crate) fn schema_agreement(&self) -> Duration {
        Duration::from_secs(90).max(self.request_timeout.saturating_mul(3))
    }

    /// How long connecting may take: every contact point may be one that does not answer, and one is asked for the
    /// cluster's tables.
    pub(crate) fn connect_patience(&self) -> Duration {
        let points = u32::try_from(self.contact_points.len()).unwrap_or(u32::MAX);
        self.connect_timeout.saturating_mul(points.saturating_add(1)).saturating_add(self.request_timeout)
    }

    /// The cluster in words, for messages.
    pub(crate) fn place(&self) -> String {
        format!("the cluster at {}", self.contact_points.join(", "))
    }
}

fn refused(reason: String) -> KvsError {
    KvsError::Misconfigured { reason, source: None }
}

/// How many copies the keyspace keeps, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replication {
    /// So many copies on any nodes: for clusters of one data centre.
    Simple {
        /// Copies of everything.
        factor: usize,
    },
    /// So many copies in each named data centre. A quorum is one of all copies together.
    NetworkTopology {
        /// Name of the data centre, and copies of everything there.
        factors: Vec<(String, usize)>,
    },
}

impl Replication {
    /// Copies in the whole cluster.
    pub(crate) fn copies(&self) -> usize {
        match self {
            Replication::Simple { factor } => *factor,
            Replication::NetworkTopology { factors } => factors.iter().map(|(_, factor)| factor).sum(),
        }
    }

    /// As CQL writes it.
    pub(crate) fn cql(&self) -> String {
        match self {
            Replication::Simple { factor } => {
                format!("{{'class': 'SimpleStrategy', 'replication_factor': {factor}}}")
            }
            Replication::NetworkTopology { factors } => {
                let centres =
                    factors.iter().map(|(name, factor)| format!(", '{}': {factor}", name.replace('\'', "''")));
                format!("{{'class': 'NetworkTopologyStrategy'{}}}", centres.collect::<String>())
            }
        }
    }

    /// What this needs and a cluster of nodes in these data centres does not have.
    pub(crate) fn lacking(&self, centres: &[&str]) -> Option<String> {
        let nodes = |number: usize| if number == 1 { "1 node".to_owned() } else { format!("{number} nodes") };
        match self {
            Replication::Simple { factor } => {
                (*factor > centres.len()).then(|| format!("the cluster has {}", nodes(centres.len())))
            }
            Replication::NetworkTopology { factors } => factors.iter().find_map(|(name, factor)| {
                let there = centres.iter().filter(|centre| *centre == name).count();
                let mut known: Vec<_> = centres.iter().map(|centre| format!("'{centre}'")).collect();
                known.sort();
                known.dedup();
                (*factor > there).then(|| {
                    format!("data centre '{name}' has {}; the cluster's are {}", nodes(there), known.join(", "))
                })
            }),
        }
    }

    /// Whether what the server tells of a keyspace means the same.
    pub(crate) fn agrees(&self, told: &std::collections::HashMap<String, String>) -> bool {
        let class = told.get("class").map_or("", |class| class.rsplit('.').next().unwrap_or(class));
        let factors: Vec<_> = told.iter().filter(|(option, _)| *option != "class").collect();
        match self {
            Replication::Simple { factor } => {
                class == "SimpleStrategy"
                    && told.get("replication_factor").is_some_and(|told| told == &factor.to_string())
            }
            Replication::NetworkTopology { factors: wanted } => {
                class == "NetworkTopologyStrategy"
                    && factors.len() == wanted.len()
                    && wanted
                        .iter()
                        .all(|(name, factor)| told.get(name).is_some_and(|told| told == &factor.to_string()))
            }
        }
    }
}

/// A password, which is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Password {
    fn from(password: String) -> Password {
        Password(password)
    }
}

impl From<&str> for Password {
    fn from(password: &str) -> Password {
        Password(password.to_owned())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<CassandraConfig> {
        CassandraConfig::from_variables("n".to_owned(), |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn variables_replace_defaults() {
        let points = ("ATLAS_CASSANDRA_CONTACT_POINTS", "10.0.0.1, node2:9043");
        let config = from(&[points, ("ATLAS_CASSANDRA_REPLICATION", "3")]).expect("the variables are fine");
        assert_eq!(config.contact_points, ["10.0.0.1", "node2:9043"]);
        assert_eq!(config.replication, Replication::Simple { factor: 3 });
        assert!(from(&[points, ("ATLAS_CASSANDRA_REPLICATION", "0")]).is_err());
        assert!(from(&[]).is_err());
    }

    #[test]
    fn password_is_never_shown() {
        let config = CassandraConfig { password: Some("secret".into()), ..CassandraConfig::new(["a"], "n") };
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let good = CassandraConfig::new(["a"], "n");
        good.check().expect("the defaults are fine");
        let none: [&str; 0] = [];
        for bad in [
            CassandraConfig::new(none, "n"),
            CassandraConfig::new(["a"], ""),
            CassandraConfig { replication: Replication::Simple { factor: 0 }, ..good.clone() },
            CassandraConfig { user: Some("ann".to_owned()), ..good.clone() },
            CassandraConfig { index_grace: Duration::from_secs(1), ..good.clone() },
        ] {
            bad.check().expect_err("this can't work");
        }
    }

    #[test]
    fn copies_need_as_many_nodes() {
        let centres = ["east", "east", "west"];
        assert_eq!(Replication::Simple { factor: 3 }.lacking(&centres), None);
        let lacking = Replication::Simple { factor: 4 }.lacking(&centres).expect("there are too few");
        assert_eq!(lacking, "the cluster has 3 nodes");
        let wanted = |factors: &[(&str, usize)]| {
            let factors = factors.iter().map(|(name, factor)| ((*name).to_owned(), *factor)).collect();
            Replication::NetworkTopology { factors }.lacking(&centres)
        };
        assert_eq!(wanted(&[("east", 2), ("west", 1)]), None);
        let lacking = wanted(&[("east", 2), ("west", 2)]).expect("there are too few");
        assert_eq!(lacking, "data centre 'west' has 1 node; the cluster's are 'east', 'west'");
        assert!(wanted(&[("north", 1)]).is_some_and(|lacking| lacking.contains("'north' has 0 nodes")));
    }

    #[test]
    fn replication_is_compared_by_meaning() {
        let told = |options: &[(&str, &str)]| {
            options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let simple = Replication::Simple { factor: 3 };
        let class = ("class", "org.apache.cassandra.locator.SimpleStrategy");
        assert!(simple.agrees(&told(&[class, ("replication_factor", "3")])));
        assert!(!simple.agrees(&told(&[class, ("replication_factor", "1")])));
        let class = ("class", "org.apache.cassandra.locator.NetworkTopologyStrategy");
        let centres = Replication::NetworkTopology { factors: vec![("east".to_owned(), 3), ("west".to_owned(), 2)] };
        assert!(centres.agrees(&told(&[class, ("west", "2"), ("east", "3")])));
        assert!(!centres.agrees(&told(&[class, ("east", "3")])));
        assert!(!centres.agrees(&told(&[class, ("west", "2"), ("east", "3"), ("north", "1")])));
        assert_eq!(centres.copies(), 5);
    }
}
