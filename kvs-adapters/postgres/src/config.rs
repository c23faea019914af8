//! Where the server is and how it is spoken to.

use atlas_kvs::{KvsError, Result};
use std::fmt;
use std::time::Duration;

/// How a [`PostgresStore`](crate::PostgresStore) is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Name or address of the server; a directory, if it begins with `/`, is that of its Unix socket.
    pub host: String,
    /// Port of the server.
    pub port: u16,
    /// Who to log in as.
    pub user: String,
    /// The password, where the server asks for one.
    pub password: Option<Password>,
    /// The database, which must exist.
    pub dbname: String,
    /// Which of several stores in the database: each has a schema of its own. Any text of at least one character.
    pub namespace: String,
    /// Connections at a time, at least one. More callers wait for one of them.
    pub pool_size: usize,
    /// How long to wait for a new connection, logging in included.
    pub connect_timeout: Duration,
    /// How long a caller waits until one of `pool_size` connections is free.
    pub pool_timeout: Duration,
    /// How long the server works on one statement before it gives up, in whole milliseconds. Zero: for ever. A server
    /// that does not even say so is given ten more seconds before its connection is dropped.
    pub statement_timeout: Duration,
    /// How long the server lets a connection stand still in the middle of a transaction before it ends it, in whole
    /// milliseconds. Zero: for ever. Short, because a client that was stopped there holds back a successor that has to
    /// change the guard of its batches.
    pub idle_in_transaction_timeout: Duration,
    /// The name that the server shows for the connections.
    pub application_name: String,
}

impl PostgresConfig {
    /// The defaults for a namespace: user and database `postgres` on this machine, no password.
    pub fn new(namespace: impl Into<String>) -> PostgresConfig {
        PostgresConfig { namespace: namespace.into(), ..PostgresConfig::default() }
    }

    /// As [`new`](PostgresConfig::new), with what the variables `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`,
    /// `PGDATABASE`, `PGCONNECT_TIMEOUT` (seconds) and `PGAPPNAME` say instead. Without `PGDATABASE` the database is
    /// named like the user.
    ///
    /// # Errors
    /// [`KvsError::Backend`] if a variable that stands for a number holds none.
    pub fn from_env(namespace: impl Into<String>) -> Result<PostgresConfig> {
        PostgresConfig::from_variables(namespace.into(), |name| {
            std::env::var(name).ok().filter(|text| !text.is_empty())
        })
    }

    fn from_variables(namespace: String, variable: impl Fn(&str) -> Option<String>) -> Result<PostgresConfig> {
        let mut config = PostgresConfig::new(namespace);
        if let Some(host) = variable("PGHOST") {
            config.host = host;
        }
        if let Some(port) = variable("PGPORT") {
            config.port = port.parse().map_err(|_| no_number("PGPORT", &port))?;
        }
        if let Some(user) = variable("PGUSER").or_else(|| variable("USER")) {
            config.dbname.clone_from(&user);
            config.user = user;
        }
        config.password = variable("PGPASSWORD").map(Password::from);
        if let Some(dbname) = variable("PGDATABASE") {
            config.dbname = dbname;
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

    /// The server and database in words, for messages.
    pub(crate) fn place(&self) -> String {
        format!("database '{}' at {}:{}", self.dbname, self.host, self.port)
    }
}

fn no_number(name: &str, text: &str) -> KvsError {
    KvsError::Backend { reason: format!("{name} is '{text}', which is not a number it can be"), source: None }
}

impl Default for PostgresConfig {
    fn default() -> PostgresConfig {
        PostgresConfig {
            host: "localhost".to_owned(),
            port: 5432,
            user: "postgres".to_owned(),
            password: None,
            dbname: "postgres".to_owned(),
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
    fn password_is_never_shown() {
        let config = PostgresConfig { password: Some("secret".into()), ..PostgresConfig::new("n") };
        assert!(!format!("{config:?}").contains("secret"));
    }
}
