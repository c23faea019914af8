//! New connections: where they lead, and how they are set before anyone gets them.
//!
//! The first connection of a store tells which database it is, and every other must lead to the same one: a pool that
//! connects anew may meet a standby that was promoted without the last commits, or another server at the same address.
//! Nothing is written there unnoticed.

use crate::config::{PostgresConfig, SslMode};
use crate::hosts::{self, Address};
use crate::tls::Tls;
use atlas_kvs::{KvsError, Result};
use deadpool_postgres::{
    ClientWrapper, Connect, Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime,
    TimeoutType,
};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode as Encryption, TargetSessionAttrs};
use tokio_postgres::{Client, Config, Error, SimpleQueryMessage};

/// The first one that vacuums tables which only grow, as ours do between sweeps.
const SERVER_VERSION_MIN: u32 = 13_00_00;

/// System identifier, timeline and database. The timeline is that of the log which is written now: the control file,
/// which has it too, is only written at the next checkpoint after a promotion.
pub(crate) const IDENTITY: &str = "SELECT format('postgres %s/%s/%s', (SELECT system_identifier FROM pg_control_system()), \
     ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int8, \
     (SELECT oid FROM pg_database WHERE datname = current_database()))";

/// Where the connections of one store come from: those of its pool, and others that last longer than a call.
#[derive(Clone)]
pub(crate) struct Door {
    servers: Arc<Servers>,
    settings: Arc<str>,
    /// What the first connection led to.
    identity: Arc<OnceLock<String>>,
    patience: Duration,
}

impl Door {
    pub(crate) async fn new(config: &PostgresConfig, tls: &Tls) -> Result<Door> {
        let servers = servers(config).await?;
        let patience = config.connect_timeout.saturating_mul(u32::try_from(servers.len()).unwrap_or(u32::MAX));
        let servers = Arc::new(Servers { servers, tls: tls.clone() });
        Ok(Door { servers, settings: session_settings(config).into(), identity: Arc::default(), patience })
    }

    /// A pool, which makes no connection yet.
    pub(crate) fn pool(&self, config: &PostgresConfig) -> Result<Pool> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(Config::new(), self.clone(), recycling);
        let door = self.clone();
        Pool::builder(manager)
            .max_size(config.pool_size.max(1))
            .wait_timeout(Some(config.pool_timeout))
            .create_timeout(Some(self.patience))
            .recycle_timeout(Some(config.connect_timeout))
            .runtime(Runtime::Tokio1)
            .post_create(Hook::async_fn(move |client: &mut ClientWrapper, _| {
                let door = door.clone();
                Box::pin(async move { door.prepare(client).await })
            }))
            .build()
            .map_err(|error| KvsError::Backend { reason: error.to_string(), source: Some(error.into()) })
    }

    /// A connection that is not of the pool, and ends when it is dropped.
    pub(crate) async fn open(&self) -> std::result::Result<Client, PoolError> {
        let opened = async {
            let (client, _) = self.servers.any().await.map_err(PoolError::Backend)?;
            self.prepare(&client).await.map_err(PoolError::PostCreateHook)?;
            Ok(client)
        };
        tokio::time::timeout(self.patience, opened).await.unwrap_or(Err(PoolError::Timeout(TimeoutType::Create)))
    }

    async fn prepare(&self, client: &Client) -> std::result::Result<(), HookError> {
        check_version(client).await?;
        client.batch_execute(&self.settings).await.map_err(HookError::Backend)?;
        check_identity(client, &self.identity).await
    }
}

impl Connect for Door {
    fn connect(&self, _: &Config) -> Connecting<'_> {
        Box::pin(self.servers.any())
    }
}

type Connecting<'a> = Pin<Box<dyn Future<Output = std::result::Result<(Client, JoinHandle<()>), Error>> + Send + 'a>>;

/// How each of the servers is connected to.
async fn servers(config: &PostgresConfig) -> Result<Vec<(Address, Config)>> {
    let passwords = hosts::password_file(config).await?;
    let servers = config.addresses()?.into_iter().map(|address| {
        let mut postgres = Config::new();
        postgres
            .host(&address.host)
            .port(address.port)
            .user(&config.user)
            .dbname(&config.dbname)
            .application_name(&config.application_name)
            .connect_timeout(config.connect_timeout)
            // A server that is gone without a word is noticed within a minute, also where nothing else limits the wait.
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(3)
            // A standby, or a primary that became one, answers from the past.
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .ssl_mode(match config.ssl_mode {
                SslMode::Require | SslMode::VerifyFull if !address.is_socket() => Encryption::Require,
                _ => Encryption::Disable,
            });
        let of_file = || passwords.as_deref().and_then(|text| hosts::password_for(text, config, &address));
        if let Some(password) = config.password.clone().or_else(of_file) {
            postgres.password(password.expose());
        }
        (address, postgres)
    });
    Ok(servers.collect())
}

/// The servers, which are asked in turn until one takes writes.
struct Servers {
    /// At least one.
    servers: Vec<(Address, Config)>,
    tls: Tls,
}

impl Servers {
    async fn any(&self) -> std::result::Result<(Client, JoinHandle<()>), Error> {
        let (last, others) = self.servers.split_last().expect("a list of hosts has at least one");
        for (address, config) in others {
            match self.tls.connect(config).await {
                Ok(connected) => return Ok(connected),
                Err(error) => tracing::debug!(%address, %error, "no connection, asking the next server"),
            }
        }
        self.tls.connect(&last.1).await
    }
}

/// What each connection is set to.
///
/// All statements walk primary keys, and are written so that there is one good way to do so. Statistics, which lag
/// behind, could only mislead the planner into reading a whole table that was small a minute ago.
///
/// Every setting that a promise rests on is set, even to what it is already: a default can change at any moment.
/// Whether to wait for the disk, and for a synchronous standby where there is one, is among them; only a setting that
/// waits for still more is kept.
fn session_settings(config: &PostgresConfig) -> String {
    let statement_timeout = config.statement_timeout.as_millis();
    let idle_timeout = config.idle_in_transaction_timeout.as_millis();
    format!(
        "SET client_min_messages = warning; SET search_path = pg_catalog; \
         SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
         SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; \
         SET enable_mergejoin = off; SET max_parallel_workers_per_gather = 0; SET jit = off; \
         SET plan_cache_mode = force_generic_plan; SET lock_timeout = 0; \
         SET statement_timeout = {statement_timeout}; SET idle_in_transaction_session_timeout = {idle_timeout}; \
         SELECT set_config('synchronous_commit', \
           CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)"
    )
}

async fn check_version(client: &Client) -> std::result::Result<(), HookError> {
    let version = ask(client, "SHOW server_version_num").await?.and_then(|text| text.parse::<u32>().ok());
    if version.is_some_and(|version| version >= SERVER_VERSION_MIN) {
        return Ok(());
    }
    let version = version.map_or_else(|| "of an unknown version".to_owned(), |number| (number / 10_000).to_string());
    let needed = SERVER_VERSION_MIN / 10_000;
    Err(HookError::message(format!("the server is PostgreSQL {version}; {needed} or later is needed")))
}

async fn check_identity(client: &Client, first: &OnceLock<String>) -> std::result::Result<(), HookError> {
    let identity = ask(client, IDENTITY).await?.unwrap_or_default();
    let first = first.get_or_init(|| identity.clone());
    if *first == identity {
        return Ok(());
    }
    Err(HookError::message(format!(
        "the server is now '{identity}', and this store began on '{first}' (system/timeline/database): a standby was \
         promoted, or another server or database has taken its place, and the last commits may be missing there; \
         nothing is written to it; make sure that it is the one to go on with, and open the store anew"
    )))
}

/// The only column of the only row.
async fn ask(client: &Client, sql: &str) -> std::result::Result<Option<String>, HookError> {
    let answer = client.simple_query(sql).await.map_err(HookError::Backend)?;
    Ok(answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}
