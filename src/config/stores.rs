//! Stores on servers: how to reach them.

use super::duration_text;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A PostgreSQL database. The namespace is a schema in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PostgresKvs {
    /// Name or address of the server, or the directory of its Unix socket.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who to log in as.
    pub user: String,
    /// The password, where the server asks for one.
    pub password: Secret,
    /// A file with nothing but the password, instead of `password`; empty: none.
    pub password_file: PathBuf,
    /// The database; it must exist.
    pub database: String,
    /// Whether connections are encrypted.
    pub ssl_mode: SslModeChoice,
    /// With `verify-full`, a file of PEM certificates, one of which must have signed that of the server; empty: none.
    pub ssl_root_certificate: PathBuf,
    /// Connections at a time.
    pub pool_size: u32,
    /// How long to wait for a new connection.
    #[serde(with = "duration_text")]
    pub connect_timeout: Duration,
    /// How long the server may work on one statement.
    #[serde(with = "duration_text")]
    pub statement_timeout: Duration,
    /// Whether a commit waits until it would survive the loss of power.
    pub sync: bool,
}

/// Whether connections to Postgres are encrypted, and how far the server is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslModeChoice {
    /// Not encrypted.
    Disable,
    /// Encrypted, whoever it is that answers.
    Require,
    /// Encrypted, by a server whose certificate is for its host and signed by a known authority.
    VerifyFull,
}

/// A Cassandra or Scylla cluster. The namespace is a keyspace in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CassandraKvs {
    /// Some of the nodes, as `HOST:PORT`, with commas between them.
    pub contact_points: String,
    /// Who to log in as; empty: nobody.
    pub user: String,
    /// The password.
    pub password: Secret,
    /// A file with nothing but the password, instead of `password`; empty: none.
    pub password_file: PathBuf,
    /// How many nodes hold each piece of data. A keyspace remembers it.
    pub replication_factor: u32,
    /// The data centre to hold the data, where replication goes by data centres; empty: it does not.
    pub data_center: String,
    /// How long to wait for the answer to one request.
    #[serde(with = "duration_text")]
    pub request_timeout: Duration,
    /// All nodes of the cluster, by the names that the three commands below know them by, with commas between them;
    /// empty: the hosts of the contact points.
    pub nodes: String,
    /// Takes a snapshot of a node, as a line for the shell; empty: backups are portable.
    pub snapshot_command: String,
    /// Loads what a snapshot of a node held, as a line for the shell; empty: only portable backups can be restored.
    pub restore_command: String,
    /// Repairs the keyspace, as one node of all, as a line for the shell; empty: only portable backups can be restored.
    pub repair_command: String,
    /// How long one of these commands may run.
    #[serde(with = "duration_text")]
    pub command_timeout: Duration,
}

impl CassandraKvs {
    /// The contact points, one by one.
    pub fn contact_points(&self) -> impl Iterator<Item = &str> {
        self.contact_points.split(',').map(str::trim).filter(|node| !node.is_empty())
    }

    /// What the commands call the nodes.
    pub fn node_names(&self) -> Vec<String> {
        let named = self.nodes.split(',').map(str::trim).filter(|node| !node.is_empty()).map(str::to_owned);
        let named: Vec<String> = named.collect();
        if named.is_empty() { self.contact_points().map(|point| host_of(point).to_owned()).collect() } else { named }
    }
}

/// Without the port, and without the brackets around an IPv6 address.
fn host_of(contact_point: &str) -> &str {
    match contact_point.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _port)) => host,
        None => contact_point.rsplit_once(':').map_or(contact_point, |(host, _port)| host),
    }
}

impl Default for PostgresKvs {
    fn default() -> PostgresKvs {
        PostgresKvs {
            host: "localhost".to_owned(),
            port: 5432,
            user: "postgres".to_owned(),
            password: Secret::default(),
            password_file: PathBuf::new(),
            database: "postgres".to_owned(),
            ssl_mode: SslModeChoice::Disable,
            ssl_root_certificate: PathBuf::new(),
            pool_size: 16,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            sync: true,
        }
    }
}

impl Default for CassandraKvs {
    fn default() -> CassandraKvs {
        CassandraKvs {
            contact_points: "127.0.0.1:9042".to_owned(),
            user: String::new(),
            password: Secret::default(),
            password_file: PathBuf::new(),
            replication_factor: 1,
            data_center: String::new(),
            request_timeout: Duration::from_secs(12),
            nodes: String::new(),
            snapshot_command: String::new(),
            restore_command: String::new(),
            repair_command: String::new(),
            command_timeout: Duration::from_secs(3600),
        }
    }
}

/// A text that is never shown: neither in logs nor in errors nor by `atlas config show`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// What is written instead of it.
    pub(super) const HIDDEN: &str = "(hidden)";

    /// The text itself; `None` if it is empty.
    pub fn reveal(&self) -> Option<&str> {
        Some(&*self.0).filter(|text| !text.is_empty())
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { Secret::HIDDEN })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { Secret::HIDDEN })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        // Whatever is wrong with it, the message does not repeat it: a password of digits is a number to YAML.
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a text; put it in quotes")]
        enum Form {
            Text(String),
        }
        let Form::Text(text) = Form::deserialize(deserializer)?;
        Ok(Secret(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_the_names_of_their_hosts_or_others() {
        let names = |contact_points: &str, nodes: &str| {
            let (contact_points, nodes) = (contact_points.to_owned(), nodes.to_owned());
            CassandraKvs { contact_points, nodes, ..CassandraKvs::default() }.node_names().join(" ")
        };
        assert_eq!(
            names("10.0.0.1:9042, node-2.example.org:9042,[::1]:9042,bare", ""),
            "10.0.0.1 node-2.example.org ::1 bare"
        );
        assert_eq!(names("10.0.0.1:9042", "pod-0, pod-1,,pod-2"), "pod-0 pod-1 pod-2");
    }
}
