//! Connections: how they are made, lent and given up.

use crate::config::PostgresConfig;
use crate::errors::{Answer, Attempt, Failure, Stakes, Trouble, explain, no_connection};
use crate::names::Names;
use atlas_kvs::KvsError;
use deadpool_postgres::{
    Client, ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime,
};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row, SimpleQueryMessage};

/// The first one that vacuums tables which only grow, as ours do between sweeps.
const SERVER_VERSION_MIN: u32 = 13_00_00;
/// How much longer than its own limit a server is waited for.
const SILENCE: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 5;

pub(crate) type Param<'a> = &'a (dyn ToSql + Sync);

/// The server as seen from here: a pool of connections to one database, and the names of one namespace.
pub(crate) struct Server {
    pub(crate) config: PostgresConfig,
    pub(crate) names: Names,
    pool: Pool,
}

impl Server {
    pub(crate) fn new(config: PostgresConfig) -> atlas_kvs::Result<Server> {
        if config.namespace.is_empty() {
            return Err(KvsError::Misconfigured {
                reason: "a namespace has at least one character".to_owned(),
                source: None,
            });
        }
        let mut postgres = tokio_postgres::Config::new();
        postgres
            .host(&config.host)
            .port(config.port)
            .user(&config.user)
            .dbname(&config.dbname)
            .application_name(&config.application_name)
            .connect_timeout(config.connect_timeout)
            .keepalives_idle(Duration::from_secs(30))
            // A standby, or a primary that became one, answers from the past.
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        if let Some(password) = &config.password {
            postgres.password(password.expose());
        }
        let manager = Manager::from_config(postgres, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let settings = session_settings(&config);
        let pool = Pool::builder(manager)
            .max_size(config.pool_size.max(1))
            .wait_timeout(Some(config.pool_timeout))
            .create_timeout(Some(config.connect_timeout))
            .recycle_timeout(Some(config.connect_timeout))
            .runtime(Runtime::Tokio1)
            .post_create(Hook::async_fn(move |client: &mut ClientWrapper, _| {
                let settings = settings.clone();
                Box::pin(async move { prepare_session(client, &settings).await })
            }))
            .build()
            .map_err(|error| KvsError::Backend { reason: error.to_string(), source: Some(error.into()) })?;
        let names = Names::new(&config.namespace);
        Ok(Server { config, names, pool })
    }

    /// A connection that nobody else uses.
    pub(crate) async fn session(&self) -> Attempt<Session> {
        let client = self.pool.get().await.map_err(|error| no_connection(error, &self.config))?;
        let timeout = self.config.statement_timeout;
        Ok(Session { client: Some(client), busy: false, in_transaction: false, timeout })
    }

    pub(crate) fn check_open(&self) -> atlas_kvs::Result<()> {
        if self.pool.is_closed() { Err(KvsError::Closed) } else { Ok(()) }
    }

    /// Refuses new sessions; idle connections are closed now and the others when they come back.
    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// Statements of a dropped table are of no more use; those of others are soon prepared again.
    pub(crate) fn forget_statements(&self) {
        self.pool.manager().statement_caches.clear();
    }

    /// Runs a statement that changes nothing.
    pub(crate) async fn read(&self, sql: &str, params: &[Param<'_>]) -> Attempt<Vec<Row>> {
        let mut session = self.session().await?;
        session.query(sql, params).await.map_err(|failure| explain(failure, Stakes::Read))
    }

    /// Repeats what had no effect and may have one the next time.
    pub(crate) async fn attempts<T, F>(&self, attempt: impl Fn() -> F) -> atlas_kvs::Result<T>
    where
        F: Future<Output = Attempt<T>>,
    {
        let mut number = 0;
        loop {
            number += 1;
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Again(error)) if number == ATTEMPTS => return Err(error),
                Err(Trouble::Again(error)) => {
                    tracing::debug!(%error, number, "trying again");
                    tokio::time::sleep(Duration::from_millis(1 << (2 * number))).await;
                }
            }
        }
    }
}

/// What each connection is set to.
///
/// All statements walk primary keys, and are written so that there is one good way to do so. Statistics, which lag
/// behind, could only mislead the planner into reading a whole table that was small a minute ago.
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
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
}

async fn prepare_session(client: &ClientWrapper, settings: &str) -> Result<(), HookError> {
    let answer = client.simple_query("SHOW server_version_num").await.map_err(HookError::Backend)?;
    let version = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse::<u32>().ok(),
        _ => None,
    });
    if version.is_none_or(|version| version < SERVER_VERSION_MIN) {
        let version =
            version.map_or_else(|| "of an unknown version".to_owned(), |number| (number / 10_000).to_string());
        let needed = SERVER_VERSION_MIN / 10_000;
        return Err(HookError::message(format!("the server is PostgreSQL {version}; {needed} or later is needed")));
    }
    client.batch_execute(settings).await.map_err(HookError::Backend)
}

/// A connection on loan.
///
/// It goes back into the pool only if it is known to be between transactions. Otherwise, also when a caller drops the
/// future in the middle of a statement, it is closed, and the server is asked to stop what it does there.
pub(crate) struct Session {
    // Invariant: there is one until drop.
    client: Option<Client>,
    /// A statement was sent and not answered.
    busy: bool,
    in_transaction: bool,
    timeout: Duration,
}

impl Session {
    fn client(&self) -> &Client {
        self.client.as_ref().expect("a session has its connection until it is dropped")
    }

    /// Begins a transaction. It lasts until [`commit`](Session::commit), or the
    /// connection is given up.
    pub(crate) async fn begin(&mut self) -> Answer<()> {
        self.in_transaction = true;
        self.batch("BEGIN").await
    }

    pub(crate) async fn commit(&mut self) -> Answer<()> {
        self.batch("COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }

    pub(crate) async fn rollback(&mut self) -> Answer<()> {
        self.batch("ROLLBACK").await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Runs statements that take no parameters.
    pub(crate) async fn batch(&mut self, sql: &str) -> Answer<()> {
        self.busy = true;
        let client = self.client();
        let answer = answered(self.timeout, 1, client.batch_execute(sql)).await;
        self.finished(answer)
    }

    pub(crate) async fn query(&mut self, sql: &str, params: &[Param<'_>]) -> Answer<Vec<Row>> {
        self.busy = true;
        let client = self.client();
        let prepared = answered(self.timeout, 1, client.prepare_cached(sql)).await;
        let answer = match prepared {
            Ok(statement) => answered(self.timeout, 1, client.query(&statement, params)).await,
            Err(failure) => Err(unsent(failure)),
        };
        self.finished(answer)
    }

    pub(crate) async fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Answer<u64> {
        self.busy = true;
        let client = self.client();
        let prepared = answered(self.timeout, 1, client.prepare_cached(sql)).await;
        let answer = match prepared {
            Ok(statement) => answered(self.timeout, 1, client.execute(&statement, params)).await,
            Err(failure) => Err(unsent(failure)),
        };
        self.finished(answer)
    }

    /// Prepares a statement, if the connection does not know it yet.
    pub(crate) async fn prepare(&mut self, sql: &str) -> Answer<tokio_postgres::Statement> {
        self.busy = true;
        let client = self.client();
        let answer = answered(self.timeout, 1, client.prepare_cached(sql)).await.map_err(unsent);
        self.finished(answer)
    }

    /// Sends steps of a transaction one behind the other without waiting, and then takes their answers, one for each.
    /// Of a silent server there is one answer for all.
    pub(crate) async fn pipeline(&mut self, steps: &[Step<'_>]) -> Vec<Answer<()>> {
        self.busy = true;
        self.in_transaction = true;
        let client = self.client();
        let answers = steps.iter().map(|step| -> Pin<Box<dyn Future<Output = _> + Send + '_>> {
            match step {
                Step::Batch(sql) => Box::pin(client.batch_execute(sql)),
                Step::Execute(statement, params) => {
                    Box::pin(async move { client.execute(*statement, params).await.map(drop) })
                }
            }
        });
        let answers = in_order(answers.collect());
        let answers = answered(self.timeout, steps.len(), async { Ok(answers.await) }).await;
        let answers: Vec<Answer<()>> = match answers {
            Ok(answers) => answers.into_iter().map(|answer| answer.map_err(Failure::Answer)).collect(),
            Err(failure) => return vec![Err(failure)],
        };
        self.busy = !answers.iter().all(|answer| answer.as_ref().err().is_none_or(Failure::spares_connection));
        let ended = matches!(steps.last(), Some(Step::Batch("COMMIT"))) && answers.last().is_some_and(Result::is_ok);
        self.in_transaction = !ended;
        answers
    }

    fn finished<T>(&mut self, answer: Answer<T>) -> Answer<T> {
        self.busy = answer.as_ref().err().is_some_and(|failure| !failure.spares_connection());
        answer
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        if !self.busy && !self.in_transaction {
            return;
        }
        let cancel = client.cancel_token();
        let closed = client.is_closed();
        drop(Object::take(client));
        // The server looks at the connection only when it has something to say.
        if let (false, Ok(runtime)) = (closed, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                // Best effort: without it the statement runs until its time-out.
                let _ = tokio::time::timeout(SILENCE, cancel.cancel_query(NoTls)).await;
            });
        }
    }
}

/// One statement of a pipeline.
pub(crate) enum Step<'a> {
    /// Statements without parameters.
    Batch(&'a str),
    /// A prepared statement.
    Execute(&'a tokio_postgres::Statement, Vec<Param<'a>>),
}

/// Nothing of it was sent, whatever the answer to its preparation was.
fn unsent(failure: Failure) -> Failure {
    match failure {
        Failure::Answer(error) => Failure::Unsent(error),
        Failure::Silence(waited) => Failure::UnsentSilence(waited),
        unsent => unsent,
    }
}

/// Waits for an answer, but not for a server that is dead or cut off for ever.
async fn answered<T>(
    timeout: Duration,
    statements: usize,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Answer<T> {
    if timeout.is_zero() {
        return answer.await.map_err(Failure::Answer);
    }
    let patience = timeout.saturating_mul(u32::try_from(statements).unwrap_or(u32::MAX)).saturating_add(SILENCE);
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer.map_err(Failure::Answer),
        Err(_) => Err(Failure::Silence(patience)),
    }
}

/// Completes all futures, and begins them in this order: a statement is sent when its future is polled for the first
/// time, and COMMIT must be behind what it commits.
async fn in_order<T>(mut futures: Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> Vec<T> {
    let mut answers: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (future, answer) in futures.iter_mut().zip(&mut answers) {
            if answer.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *answer = Some(value),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    answers.into_iter().flatten().collect()
}
