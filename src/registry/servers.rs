//! Stores on servers.

use crate::backup::NodeCommands;
use crate::config::{CassandraKvs, PostgresKvs, Secret};
use crate::{Error, Result};
use atlas_kvs::KeyValueService;
use std::path::Path;
use std::sync::Arc;

/// No password is this long, and something else that is named by mistake may be endless.
#[cfg_attr(not(any(feature = "postgres", feature = "cassandra")), allow(dead_code))]
const PASSWORD_LEN_MAX: u64 = 4096;

/// Connects to the database and makes the namespace's schema if it is missing.
#[cfg(feature = "postgres")]
pub(super) async fn open_postgres(settings: &PostgresKvs, namespace: &str) -> Result<Arc<dyn KeyValueService>> {
    Ok(Arc::new(atlas_kvs_postgres::PostgresStore::connect(postgres_config(settings, namespace)?).await?))
}

/// Connects to the database; `None` if it has no schema of the namespace.
#[cfg(feature = "postgres")]
pub(super) async fn existing_postgres(
    settings: &PostgresKvs,
    namespace: &str,
) -> Result<Option<Arc<dyn KeyValueService>>> {
    let config = postgres_config(settings, namespace)?;
    let store = atlas_kvs_postgres::PostgresStore::connect_existing(config).await?;
    Ok(store.map(|store| -> Arc<dyn KeyValueService> { Arc::new(store) }))
}

#[cfg(feature = "postgres")]
fn postgres_config(settings: &PostgresKvs, namespace: &str) -> Result<atlas_kvs_postgres::PostgresConfig> {
    use crate::config::SslModeChoice;
    use atlas_kvs_postgres::{Password, PostgresConfig, SslMode};

    Ok(PostgresConfig {
        host: settings.host.clone(),
        port: settings.port,
        user: settings.user.clone(),
        password: password(&settings.password, &settings.password_file)?.map(Password::from),
        dbname: settings.database.clone(),
        ssl_mode: match settings.ssl_mode {
            SslModeChoice::Disable => SslMode::Disable,
            SslModeChoice::Require => SslMode::Require,
            SslModeChoice::VerifyFull => SslMode::VerifyFull,
        },
        ssl_root_certificate: Some(settings.ssl_root_certificate.clone()).filter(|file| !file.as_os_str().is_empty()),
        namespace: namespace.to_owned(),
        pool_size: settings.pool_size as usize,
        connect_timeout: settings.connect_timeout,
        statement_timeout: settings.statement_timeout,
        ..PostgresConfig::default()
    })
}

#[cfg(not(feature = "postgres"))]
pub(super) async fn open_postgres(_settings: &PostgresKvs, _namespace: &str) -> Result<Arc<dyn KeyValueService>> {
    Err(super::not_built("postgres"))
}

#[cfg(not(feature = "postgres"))]
pub(super) async fn existing_postgres(
    _settings: &PostgresKvs,
    _namespace: &str,
) -> Result<Option<Arc<dyn KeyValueService>>> {
    Err(super::not_built("postgres"))
}

/// Connects to the cluster and makes the namespace's keyspace if it is missing.
#[cfg(feature = "cassandra")]
pub(super) async fn open_cassandra(settings: &CassandraKvs, namespace: &str) -> Result<Arc<dyn KeyValueService>> {
    let config = cassandra_config(settings, namespace)?;
    Ok(Arc::new(atlas_kvs_cassandra::CassandraStore::connect(config).await?))
}

/// Connects to the cluster; `None` if it has no keyspace of the namespace.
#[cfg(feature = "cassandra")]
pub(super) async fn existing_cassandra(
    settings: &CassandraKvs,
    namespace: &str,
) -> Result<Option<Arc<dyn KeyValueService>>> {
    let config = cassandra_config(settings, namespace)?;
    let store = atlas_kvs_cassandra::CassandraStore::connect_existing(config).await?;
    Ok(store.map(|store| -> Arc<dyn KeyValueService> { Arc::new(store) }))
}

#[cfg(feature = "cassandra")]
fn cassandra_config(settings: &CassandraKvs, namespace: &str) -> Result<atlas_kvs_cassandra::CassandraConfig> {
    use atlas_kvs_cassandra::{CassandraConfig, Password, Replication};

    let factor = settings.replication_factor as usize;
    let replication = if settings.data_center.is_empty() {
        Replication::Simple { factor }
    } else {
        Replication::NetworkTopology { factors: vec![(settings.data_center.clone(), factor)] }
    };
    Ok(CassandraConfig {
        replication,
        user: Some(settings.user.clone()).filter(|user| !user.is_empty()),
        password: password(&settings.password, &settings.password_file)?.map(Password::from),
        request_timeout: settings.request_timeout,
        ..CassandraConfig::new(settings.contact_points(), namespace)
    })
}

/// The commands for the nodes of the cluster, where there are some.
#[cfg(feature = "cassandra")]
pub(super) fn node_commands(settings: &CassandraKvs, namespace: &str) -> Option<NodeCommands> {
    let given = |line: &str| Some(line.to_owned()).filter(|line| !line.is_empty());
    let commands = NodeCommands {
        nodes: settings.node_names(),
        keyspace: atlas_kvs_cassandra::CassandraConfig::new(settings.contact_points(), namespace).keyspace(),
        snapshot: given(&settings.snapshot_command),
        restore: given(&settings.restore_command),
        repair: given(&settings.repair_command),
        timeout: settings.command_timeout,
    };
    let is_any = commands.snapshot.is_some() || commands.restore.is_some() || commands.repair.is_some();
    is_any.then_some(commands)
}

#[cfg(not(feature = "cassandra"))]
pub(super) fn node_commands(_settings: &CassandraKvs, _namespace: &str) -> Option<NodeCommands> {
    None
}

#[cfg(not(feature = "cassandra"))]
pub(super) async fn open_cassandra(_settings: &CassandraKvs, _namespace: &str) -> Result<Arc<dyn KeyValueService>> {
    Err(super::not_built("cassandra"))
}

#[cfg(not(feature = "cassandra"))]
pub(super) async fn existing_cassandra(
    _settings: &CassandraKvs,
    _namespace: &str,
) -> Result<Option<Arc<dyn KeyValueService>>> {
    Err(super::not_built("cassandra"))
}

/// The password of a configuration, or the one in the file it names.
#[cfg_attr(not(any(feature = "postgres", feature = "cassandra")), allow(dead_code))]
fn password(given: &Secret, file: &Path) -> Result<Option<String>> {
    use std::io::Read;

    if file.as_os_str().is_empty() {
        return Ok(given.reveal().map(str::to_owned));
    }
    let wrong = |reason: String| Error::Config { place: "keyValueService.passwordFile".to_owned(), reason };
    if given.reveal().is_some() {
        return Err(wrong("password and passwordFile are both given; leave one of them out".to_owned()));
    }
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(PASSWORD_LEN_MAX + 1).read_to_string(&mut text))
        .map_err(|error| wrong(format!("{} can't be read: {error}", file.display())))?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() || password.contains('\n') || text.len() as u64 > PASSWORD_LEN_MAX {
        return Err(wrong(format!("{} must hold one line, the password", file.display())));
    }
    Ok(Some(password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_comes_from_one_place() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let file = dir.path().join("password");
        std::fs::write(&file, "s3cret\r\n").expect("a file can be written");
        let none = Path::new("");
        assert_eq!(password(&Secret::default(), none).expect("none is fine"), None);
        assert_eq!(password(&"a b".into(), none).expect("it is given"), Some("a b".to_owned()));
        assert_eq!(password(&Secret::default(), &file).expect("it is in the file"), Some("s3cret".to_owned()));
        let both = password(&"given".into(), &file).expect_err("both are too many").to_string();
        assert!(both.contains("both") && !both.contains("given\"") && !both.contains("s3cret"), "{both}");
        for content in ["", "\n", "two\nlines\n"] {
            std::fs::write(&file, content).expect("a file can be written");
            let error = password(&Secret::default(), &file).expect_err("this is no password").to_string();
            assert!(error.contains("one line") && !error.contains("two"), "{error}");
        }
        password(&Secret::default(), &dir.path().join("missing")).expect_err("there is no such file");
    }
}
