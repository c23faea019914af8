//! Requests: how they are sent, to whom, and how often.
//!
//! Reads change nothing, so the driver may ask a second coordinator when the first is slow, and the request is made
//! again when it failed. Writes carry their write timestamp, so the same write sent twice is one write; but the driver
//! tells only how the last attempt ended, and what became of the ones before decides about the answer. So writes are
//! repeated here. Lightweight transactions are sent once, always to the same replica of a cell as long as it lives: two
//! coordinators that work on one cell get into each other's way.

use crate::clock::Clock;
use crate::config::CassandraConfig;
use crate::errors::{Attempt, Failure, Stakes, Trouble, no_answer, not_connected, unexpected};
use crate::statement::{Statement, Use};
use atlas_kvs::{KvsError, Result};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::RwLock;
use scylla::client::PoolSize;
use scylla::client::execution_profile::{ExecutionProfile, ExecutionProfileHandle};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::ExecutionError;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::retry::{DefaultRetryPolicy, FallthroughRetryPolicy};
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::response::query_result::{QueryResult, QueryRowsResult};
use scylla::response::{PagingState, PagingStateResponse};
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// How often a failed read is made.
const READS_MAX: u32 = 4;
/// How long a coordinator is given before another one is asked as well.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Rows that come with one answer, where there may be very many.
const PAGE_ROWS: i32 = 1_000;

/// The cluster as seen from here: connections to it, and the keyspace of one namespace.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) config: CassandraConfig,
    pub(crate) keyspace: String,
    pub(crate) clock: Clock,
    /// Changes of the schema, one at a time.
    pub(crate) schema: tokio::sync::Mutex<()>,
    session: RwLock<Option<Arc<Session>>>,
    profiles: Profiles,
}

#[derive(Debug)]
struct Profiles {
    read: ExecutionProfileHandle,
    write: ExecutionProfileHandle,
    serial: ExecutionProfileHandle,
    lightweight: ExecutionProfileHandle,
}

impl Profiles {
    fn new(config: &CassandraConfig) -> Profiles {
        let common = || ExecutionProfile::builder().request_timeout(Some(config.request_timeout));
        let hasty = || {
            common().speculative_execution_policy(Some(Arc::new(SimpleSpeculativeExecutionPolicy {
                max_retry_count: 2,
                retry_interval: PATIENCE,
            })))
        };
        // Whoever works on one cell goes to the same replica.
        let same_replica = || DefaultPolicy::builder().enable_shuffling_replicas(false).build();
        let read = hasty().consistency(Consistency::Quorum).retry_policy(Arc::new(DefaultRetryPolicy::new()));
        let serial = hasty()
            .consistency(Consistency::Serial)
            .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
            .load_balancing_policy(same_replica());
        let write = common().consistency(Consistency::Quorum).retry_policy(Arc::new(FallthroughRetryPolicy::new()));
        let lightweight = common()
            .consistency(Consistency::Quorum)
            .serial_consistency(Some(SerialConsistency::Serial))
            .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
            .load_balancing_policy(same_replica());
        Profiles {
            read: read.build().into_handle(),
            write: write.build().into_handle(),
            serial: serial.build().into_handle(),
            lightweight: lightweight.build().into_handle(),
        }
    }
}

impl Cluster {
    pub(crate) async fn connect(config: CassandraConfig) -> Result<Cluster> {
        config.check()?;
        let profiles = Profiles::new(&config);
        let keyspace = config.keyspace();
        let mut builder = SessionBuilder::new()
            .known_nodes(&config.contact_points)
            .default_execution_profile_handle(profiles.write.clone())
            .connection_timeout(config.connect_timeout)
            // So much later at most, a node that hangs is no coordinator any more.
            .keepalive_interval(Duration::from_secs(5))
            .keepalive_timeout(Duration::from_secs(5))
            .pool_size(PoolSize::PerHost(NonZeroUsize::MIN))
            .keyspaces_to_fetch([keyspace.clone()])
            .schema_agreement_interval(Duration::from_millis(20))
            .schema_agreement_timeout(config.schema_agreement());
        if let (Some(user), Some(password)) = (&config.user, &config.password) {
            builder = builder.user(user, password.expose());
        }
        // The driver bounds only the first step of connecting. Something that answers its signs of life and nothing else
        // would keep it waiting for ever; and so does, one time in hundreds, something that hangs up at once: a request
        // that is put into the channel of a connection while that ends stays there (tokio-rs/tokio#7714), and nobody
        // tells who waits for its answer.
        let patience = config.connect_patience();
        let session = match timeout(patience, builder.build()).await {
            Ok(session) => session.map_err(|error| not_connected(error, &config.place()))?,
            Err(_) => return Err(no_answer(&config.place(), patience)),
        };
        let session = RwLock::new(Some(Arc::new(session)));
        let (clock, schema) = (Clock::default(), tokio::sync::Mutex::new(()));
        Ok(Cluster { config, keyspace, clock, schema, session, profiles })
    }

    pub(crate) fn session(&self) -> Result<Arc<Session>> {
        self.session.read().clone().ok_or(KvsError::Closed)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        self.session().map(drop)
    }

    /// Ends the connections as soon as nobody waits for an answer on them.
    pub(crate) fn close(&self) {
        self.session.write().take();
    }

    fn open_session(&self) -> std::result::Result<Arc<Session>, Failure> {
        self.session.read().clone().ok_or(Failure::Closed)
    }

    async fn prepared<'a>(
        &self,
        statement: &'a Statement,
    ) -> std::result::Result<(Arc<Session>, &'a PreparedStatement), Failure> {
        let session = self.open_session()?;
        let prepare = async {
            let limit = self.config.request_timeout;
            let mut prepared = match timeout(limit, session.prepare(statement.text.clone())).await {
                Ok(Ok(prepared)) => prepared,
                Ok(Err(error)) => return Err(Failure::of(error.into(), Stakes::Read)),
                Err(_) => return Err(Failure::NotDone(Box::new(ExecutionError::RequestTimeout(limit)))),
            };
            let (profile, consistency) = match statement.usage {
                Use::Read => (&self.profiles.read, Consistency::Quorum),
                Use::ReadAll => (&self.profiles.read, Consistency::All),
                Use::ReadSerial => (&self.profiles.serial, Consistency::Serial),
                Use::Write => (&self.profiles.write, Consistency::Quorum),
                Use::Delete => (&self.profiles.write, Consistency::All),
                Use::Lightweight => (&self.profiles.lightweight, Consistency::Quorum),
            };
            prepared.set_execution_profile_handle(Some(profile.clone()));
            prepared.set_consistency(consistency);
            prepared.set_is_idempotent(statement.usage != Use::Lightweight);
            prepared.set_page_size(PAGE_ROWS);
            Ok(prepared)
        };
        let prepared = statement.prepared.get_or_try_init(|| prepare).await?;
        Ok((session, prepared))
    }

    /// Rows of a statement that tells itself how many there can be.
    pub(crate) async fn rows<R>(
        &self,
        statement: &Statement,
        values: &(impl SerializeRow + Sync),
        doing: &str,
    ) -> Attempt<Vec<R>>
    where
        R: for<'f> DeserializeRow<'f, 'f>,
    {
        let mut number = 0;
        loop {
            let answer = async {
                let (session, prepared) = self.prepared(statement).await?;
                session.execute_unpaged(prepared, values).await.map_err(|error| Failure::of(error, Stakes::Read))
            };
            match answer.await {
                Ok(result) => return Ok(decode(result)?),
                Err(failure) => pause_before_reading_again(failure, &mut number, doing).await?,
            }
        }
    }

    /// All rows of a statement that may have very many, a page at a time.
    pub(crate) async fn all_rows<R>(
        &self,
        statement: &Statement,
        values: &(impl SerializeRow + Sync),
        doing: &str,
        mut each: impl FnMut(R),
    ) -> Attempt<()>
    where
        R: for<'f> DeserializeRow<'f, 'f>,
    {
        let (mut place, mut number) = (PagingState::start(), 0);
        loop {
            let answer = async {
                let (session, prepared) = self.prepared(statement).await?;
                let page = session.execute_single_page(prepared, values, place.clone());
                page.await.map_err(|error| Failure::of(error, Stakes::Read))
            };
            match answer.await {
                Ok((result, next)) => {
                    decode(result)?.into_iter().for_each(&mut each);
                    match next {
                        PagingStateResponse::HasMorePages { state } => (place, number) = (state, 0),
                        PagingStateResponse::NoMorePages => return Ok(()),
                    }
                }
                Err(failure) => pause_before_reading_again(failure, &mut number, doing).await?,
            }
        }
    }

    /// Makes a write that may be made twice. It is sent again while nobody has answered, and given up in the end: then
    /// it is told as not done only if no attempt can have done anything.
    pub(crate) async fn write(
        &self,
        statement: &Statement,
        values: &(impl SerializeRow + Sync),
        doing: &str,
    ) -> Attempt<()> {
        let patience = self.config.write_patience();
        let deadline = Instant::now() + patience;
        let attempt = || async {
            let (session, prepared) = self.prepared(statement).await?;
            session.execute_unpaged(prepared, values).await.map_err(|error| Failure::of(error, Stakes::Write))
        };
        let mut under_way = FuturesUnordered::new();
        let (mut unknown, mut not_done) = (None, None);
        // Both grow: a cluster that is slow because it has too much to do is not helped by more of it.
        let (mut pause, mut one_more_after) = (Duration::from_millis(20), PATIENCE);
        while Instant::now() < deadline {
            under_way.push(attempt());
            match timeout_at(deadline.min(Instant::now() + one_more_after), under_way.next()).await {
                Ok(Some(Ok(_))) => return Ok(()),
                // An attempt before may have done it, but then in a table that is no more.
                Ok(Some(Err(failure @ (Failure::Missing(_) | Failure::Closed)))) => return Err(failure.explain(doing)),
                Ok(Some(Err(failure @ Failure::Refused(_)))) => return Err(unknown.unwrap_or(failure).explain(doing)),
                Ok(Some(Err(failure))) => {
                    tracing::debug!(?failure, doing, "writing again");
                    match failure {
                        Failure::NotDone(_) => not_done = Some(failure),
                        _ => unknown = Some(failure),
                    }
                    sleep_until(deadline.min(Instant::now() + pause)).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                // Nobody has answered for a while: ask another one as well.
                Ok(None) | Err(_) => one_more_after *= 2,
            }
        }
        // What is still under way may have been done.
        let silence = (!under_way.is_empty()).then_some(Failure::Silence(patience));
        Err(unknown.or(silence).or(not_done).unwrap_or(Failure::Silence(patience)).explain(doing))
    }

    /// Sends a lightweight transaction, once.
    pub(crate) async fn compare(
        &self,
        statement: &Statement,
        values: &(impl SerializeRow + Sync),
        doing: &str,
    ) -> Attempt<QueryRowsResult> {
        let answer = async {
            let (session, prepared) = self.prepared(statement).await?;
            session.execute_unpaged(prepared, values).await.map_err(|error| Failure::of(error, Stakes::Lightweight))
        };
        let result = answer.await.map_err(|failure: Failure| failure.explain(doing))?;
        result.into_rows_result().map_err(|error| Trouble::Final(unexpected(error)))
    }
}

/// Waits a little, unless it is of no use to read again.
async fn pause_before_reading_again(failure: Failure, number: &mut u32, doing: &str) -> Attempt<()> {
    *number += 1;
    match failure {
        Failure::NotDone(error) if *number < READS_MAX => {
            tracing::debug!(%error, number, doing, "reading again");
            sleep(Duration::from_millis(20 << (2 * *number))).await;
            Ok(())
        }
        failure => Err(failure.explain(doing)),
    }
}

fn decode<R>(result: QueryResult) -> Result<Vec<R>>
where
    R: for<'f> DeserializeRow<'f, 'f>,
{
    let rows = result.into_rows_result().map_err(unexpected)?;
    rows.rows::<R>().map_err(unexpected)?.map(|row| row.map_err(unexpected)).collect()
}
