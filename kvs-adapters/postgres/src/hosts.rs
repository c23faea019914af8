//! The servers of a configuration, and their passwords.

use crate::config::{Password, PostgresConfig};
use atlas_kvs::{KvsError, Result};
use std::fmt;
use std::path::Path;

/// No file of passwords is longer, and something else that is named by mistake may be endless.
const FILE_LEN_MAX: u64 = 1 << 20;

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// True if it is reached by a Unix socket, which is in the directory `host`.
    pub(crate) fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A list of hosts, each with a port of its own or without.
pub(crate) fn parse(hosts: &str, port: u16) -> Result<Vec<Address>> {
    hosts.split(',').map(|host| address(host.trim(), port)).collect()
}

fn address(text: &str, default: u16) -> Result<Address> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match (bracketed, text.split_once(':')) {
        (Some((host, rest)), _) => (host, rest.strip_prefix(':')),
        // More than one colon: an address of the sixth version and nothing else.
        (None, Some((host, port))) if !port.contains(':') => (host, Some(port)),
        (None, _) => (text, None),
    };
    let port = port.map_or(Ok(default), str::parse);
    match port {
        Ok(port) if !host.is_empty() => Ok(Address { host: host.to_owned(), port }),
        _ => {
            let reason = format!("'{text}' is no host: expected NAME, NAME:PORT or a directory");
            Err(KvsError::Misconfigured { reason, source: None })
        }
    }
}

/// The text of the file of passwords, where one is needed.
///
/// # Errors
/// If it can't be read, or others than its owner can.
pub(crate) async fn password_file(config: &PostgresConfig) -> Result<Option<String>> {
    let Some(file) = config.password_file.as_deref().filter(|_| config.password.is_none()) else { return Ok(None) };
    let wrong =
        |reason: String| KvsError::Misconfigured { reason: format!("{} {reason}", file.display()), source: None };
    let unreadable = |error: std::io::Error| wrong(format!("can't be read: {error}"));
    let metadata = tokio::fs::metadata(file).await.map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > FILE_LEN_MAX {
        return Err(wrong("is no file of passwords".to_owned()));
    }
    check_access(file, &metadata)?;
    tokio::fs::read_to_string(file).await.map(Some).map_err(unreadable)
}

#[cfg(unix)]
fn check_access(file: &Path, metadata: &std::fs::Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;

    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    let reason = format!(
        "{} holds passwords, and others than its owner have access to it: make it so that they have none (chmod 0600)",
        file.display()
    );
    Err(KvsError::Misconfigured { reason, source: None })
}

#[cfg(not(unix))]
fn check_access(_file: &Path, _metadata: &std::fs::Metadata) -> Result<()> {
    Ok(())
}

/// The password of the first line that is for this server.
pub(crate) fn password_for(text: &str, config: &PostgresConfig, address: &Address) -> Option<Password> {
    let port = address.port.to_string();
    let host_fits = |field: &str| field == address.host || (address.is_socket() && field == "localhost");
    let fits = |fields: &[String]| {
        let any = |field: &str, fits: bool| field == "*" || fits;
        any(&fields[0], host_fits(&fields[0]))
            && any(&fields[1], fields[1] == port)
            && any(&fields[2], fields[2] == config.dbname)
            && any(&fields[3], fields[3] == config.user)
    };
    let lines = text.lines().filter(|line| !line.starts_with('#')).map(fields);
    let mut found = lines.filter(|fields| fields.len() == 5 && fits(fields)).map(|mut fields| fields.remove(4));
    found.next().map(Password::from)
}

/// The parts between colons. A backslash takes the meaning from the colon or backslash behind it.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            ':' if fields.len() < 5 => {
                fields.push(String::new());
                continue;
            }
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        };
        fields.last_mut().expect("there is one from the beginning").push(c);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_addresses_and_directories() {
        let shown = |hosts: &str| -> Vec<String> {
            parse(hosts, 5432).expect("they are hosts").iter().map(ToString::to_string).collect()
        };
        assert_eq!(shown("db"), ["db:5432"]);
        assert_eq!(shown("a:1, b ,10.0.0.1:2"), ["a:1", "b:5432", "10.0.0.1:2"]);
        assert_eq!(shown("::1,[fe80::2],[::3]:7"), ["[::1]:5432", "[fe80::2]:5432", "[::3]:7"]);
        assert_eq!(shown("/run/postgresql,/tmp:7"), ["/run/postgresql:5432", "/tmp:7"]);
        for bad in ["", "a,,b", "a:", ":1", "a:b", "a:70000", "[::1]:", "[]:1"] {
            parse(bad, 5432).expect_err(bad);
        }
    }

    #[test]
    fn first_line_that_fits_has_the_password() {
        let text = "# a comment:*:*:*:no\n\
                    too:few:fields\n\
                    other:*:*:*:wrong\n\
                    db:5433:*:ann:third\n\
                    db:*:at\\:las:ann:se\\:c\\\\ret:s\n\
                    *:*:*:bob:any\n\
                    localhost:*:*:ann:socket\n";
        let ask = |host: &str, port, dbname: &str, user: &str| {
            let config =
                PostgresConfig { dbname: dbname.to_owned(), user: user.to_owned(), ..PostgresConfig::new("n") };
            let password = password_for(text, &config, &Address { host: host.to_owned(), port });
            password.map(|password| password.expose().to_owned())
        };
        assert_eq!(ask("db", 5432, "at:las", "ann").as_deref(), Some("se:c\\ret:s"));
        assert_eq!(ask("db", 5433, "at:las", "ann").as_deref(), Some("third"));
        assert_eq!(ask("db", 5432, "x", "bob").as_deref(), Some("any"));
        assert_eq!(ask("/run/postgresql", 5432, "x", "ann").as_deref(), Some("socket"));
        assert_eq!(ask("db", 5432, "x", "ann"), None);
    }
}
