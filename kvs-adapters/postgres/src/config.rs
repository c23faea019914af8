//! Where the server is and how it is spoken to.

use crate::hosts::{self, Address};
use atlas_kvs::{KvsError, Result};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How a [`PostgresStore`](crate::PostgresStore) is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Name or address of the server; a directory, if it begins with `/`, is that of its Unix socket.
    ///
    /// Several, with commas between them, are asked in turn for each new connection until one takes writes: the
    /// primary of a group may change its place. Each may have a port of its own, as in `a:5432,[::1]:5433`.
    pub host: String,
    /// Port of the server, of all that name none themselves.
    pub port: u16,
    /// Who to log in as.
    pub user: String,
    /// The password, where the server asks for one.
    pub password: Option<Password>,
    /// A file of passwords as `psql` has it, lines of `host:port:database:user:password`, where there is no
    /// `password`. It is read when the store is opened, and nobody but its owner may have access to it.
    pub password_file: Option<PathBuf>,
    /// The database, which must exist.
    pub dbname: String,
    /// Whether connections are encrypted. Those to Unix sockets never are.
    pub ssl_mode: SslMode,
    /// With [`SslMode::VerifyFull`], a file of PEM certificates, one of which must have signed that of the server.
    pub ssl_root_certificate: Option<PathBuf>,
    /// Which of several stores in the database: each has a schema of its own. Any text of at least one character.
    pub namespace: String,
    /// Connections at a time, at least one. More callers wait for one of them.
    pub pool_size: usize,
    /// How long to wait for a new connection to one host, logging in included.
    pub connect_timeout: Duration,
    /// How long a caller waits until one of `pool_size` connections is free.
    pub pool_timeout: Duration,
    /// How long the server works on one statement before it gives up, in whole milliseconds. Zero: for ever. A batch of
    /// commits is one statement mostly. A server that does not even say so is given ten more seconds before its connection
    /// is dropped.
    pub statement_timeout: Duration,
    /// How long the server lets a connection stand still in the middle of a transaction before it ends it, in whole
    /// milliseconds. Zero: for ever. Short, because a client that was stopped there holds back a successor that has to
    /// change the guard of its batches.
    pub idle_in_transaction_timeout: Duration,
    /// The name that the server shows for the connections.
    pub application_name: String,
}

/// Whether connections are encrypted, and how far the server is trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Not encrypted.
    #[default]
    Disable,
    /// Encrypted, whoever it is that answers: no protection from somebody who sits in between.
    Require,
    /// Encrypted, by a server whose certificate is for its host and signed by a known authority.
    VerifyFull,
}

impl PostgresConfig {
    /// The defaults for a namespace: user and database `postgres` on this machine, no password.
    pub fn new(namespace: impl Into<String>) -> PostgresConfig {
        PostgresConfig { namespace: namespace.into(), ..PostgresConfig::default() }
    }

    /// As [`new`](PostgresConfig::new), with what the variables `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`,
    /// `PGPASSFILE`, `PGDATABASE`, `PGSSLMODE`, `PGSSLROOTCERT`, `PGCONNECT_TIMEOUT` (seconds) and `PGAPPNAME` say
    /// instead. Without `PGDATABASE` the database is named like the user; without `PGPASSFILE` passwords are looked
    /// for in `~/.pgpass`, if there is one. The modes `allow` and `prefer`, which promise nothing, mean
    /// [`SslMode::Disable`].
    ///
    /// # Errors
    /// [`KvsError::Misconfigured`] if a variable holds what it can't be.
    pub fn from_env(namespace: impl Into<String>) -> Result<PostgresConfig> {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let mut config = PostgresConfig::from_variables(namespace.into(), variable)?;
        if config.password_file.is_none() {
            let home = variable("HOME").map(|home| PathBuf::from(home).join(".pgpass"));
            config.password_file = home.filter(|file| file.exists());
        }
        Ok(config)
    }

    fn from_variables(namespace: String, variable: impl Fn(&str) -> Option<String>) -> Result<PostgresConfig> {
        let mut config = PostgresConfig::new(namespace);
        if let Some(host) = variable("PGHOST") {
            config.host = host;
        }
        if let Some(ports) = variable("PGPORT") {
            config.set_ports(&ports)?;
        }
        if let Some(user) = variable("PGUSER").or_else(|| variable("USER")) {
            config.dbname.clone_from(&user);
            config.user = user;
        }
        config.password = variable("PGPASSWORD").map(Password::from);
        config.password_file = variable("PGPASSFILE").map(PathBuf::from);
        if let Some(dbname) = variable("PGDATABASE") {
            config.dbname = dbname;
        }
        if let Some(mode) = variable("PGSSLMODE") {
            config.ssl_mode = ssl_mode(&mode)?;
        }
        if config.ssl_mode == SslMode::VerifyFull {
            config.ssl_root_certificate = variable("PGSSLROOTCERT").map(PathBuf::from);
        }
        if let Some(seconds) = variable("PGCONNECT_TIMEOUT") {
            config.connect_timeout =
                Duration::from_secs(seconds.parse().map_err(|_| no_number("PGCONNECT_TIMEOUT", &seconds))?);
        }
        if let Some(name) = variable("PGAPPNAME") {
            config.application_name = name;
        }
        Ok(config)
    }

    /// One port for all hosts, or as many as there are hosts.
    fn set_ports(&mut self, ports: &str) -> Result<()> {
        let parse = |port: &str| port.trim().parse::<u16>().map_err(|_| no_number("PGPORT", ports));
        let Some((first, _)) = ports.split_once(',') else {
            self.port = parse(ports)?;
            return Ok(());
        };
        self.port = parse(first)?;
        let (hosts, ports): (Vec<_>, Vec<_>) = (self.host.split(',').collect(), ports.split(',').collect());
        if hosts.len() != ports.len() {
            let reason = format!("PGPORT has {} ports for {} hosts", ports.len(), hosts.len());
            return Err(KvsError::Misconfigured { reason, source: None });
        }
        let mut joined = Vec::new();
        for (host, port) in hosts.into_iter().zip(ports) {
            joined.push(Address { host: host.trim().to_owned(), port: parse(port)? }.to_string());
        }
        self.host = joined.join(",");
        Ok(())
    }

    /// The servers, in the order in which they are asked.
    pub(crate) fn addresses(&self) -> Result<Vec<Address>> {
        hosts::parse(&self.host, self.port)
    }

    /// The server and database in words, for messages.
    pub(crate) fn place(&self) -> String {
        let addresses = self.addresses().unwrap_or_default();
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        format!("database '{}' at {}", self.dbname, addresses.join(", "))
    }
}

fn ssl_mode(text: &str) -> Result<SslMode> {
    match text {
        "disable" | "allow" | "prefer" => Ok(SslMode::Disable),
        "require" => Ok(SslMode::Require),
        "verify-full" => Ok(SslMode::VerifyFull),
        other => {
            let reason = format!("PGSSLMODE is '{other}'; known here are disable, require and verify-full");
            Err(KvsError::Misconfigured { reason, source: None })
        }
    }
}

fn no_number(name: &str, text: &str) -> KvsError {
    KvsError::Misconfigured { reason: format!("{name} is '{text}', which is not a number it can be"), source: None }
}

impl Default for PostgresConfig {
    fn default() -> PostgresConfig {
        PostgresConfig {
            host: "localhost".to_owned(),
            port: 5432,
            user: "postgres".to_owned(),
            password: None,
            password_file: None,
            dbname: "postgres".to_owned(),
            ssl_mode: SslMode::Disable,
            ssl_root_certificate: None,
            namespace: "default".to_owned(),
            pool_size: 16,
            connect_timeout: Duration::from_secs(10),
            pool_timeout: Duration::from_secs(30),
            statement_timeout: Duration::from_secs(30),
            idle_in_transaction_timeout: Duration::from_secs(5),
            application_name: "atlas".to_owned(),
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

    fn from(variables: &[(&str, &str)]) -> Result<PostgresConfig> {
        PostgresConfig::from_variables("n".to_owned(), |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn variables_replace_defaults() {
        let config = from(&[("PGHOST", "/run/pg"), ("PGPORT", "5433"), ("PGUSER", "ann"), ("PGPASSWORD", "secret")]);
        let config = config.expect("the variables are fine");
        assert_eq!((&*config.host, config.port, &*config.user, &*config.dbname), ("/run/pg", 5433, "ann", "ann"));
        assert_eq!(config.password.as_ref().map(Password::expose), Some("secret"));
        assert_eq!(from(&[]).expect("nothing is set"), PostgresConfig::new("n"));
        assert!(from(&[("PGPORT", "many")]).is_err());
    }

    #[test]
    fn hosts_have_one_port_or_one_each() {
        let places = |variables: &[(&str, &str)]| {
            let addresses = from(variables).expect("the variables are fine").addresses().expect("the hosts are fine");
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(places(&[("PGHOST", "a,b"), ("PGPORT", "7")]), ["a:7", "b:7"]);
        assert_eq!(places(&[("PGHOST", "a,::1"), ("PGPORT", "7,8")]), ["a:7", "[::1]:8"]);
        assert!(from(&[("PGHOST", "a,b"), ("PGPORT", "7,8,9")]).is_err());
    }

    #[test]
    fn modes_that_promise_something_are_kept() {
        let variables = [("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", "/root.crt")];
        let config = from(&variables).expect("the variables are fine");
        assert_eq!((config.ssl_mode, config.ssl_root_certificate), (SslMode::VerifyFull, Some("/root.crt".into())));
        assert_eq!(from(&[("PGSSLMODE", "prefer")]).expect("it is known").ssl_mode, SslMode::Disable);
        from(&[("PGSSLMODE", "verify-ca")]).expect_err("less is not taken for more, nor more for less");
    }

    #[test]
    fn password_is_never_shown() {
        let config = PostgresConfig { password: Some("secret".into()), ..PostgresConfig::new("n") };
        assert!(!format!("{config:?}").contains("secret"));
    }
}
