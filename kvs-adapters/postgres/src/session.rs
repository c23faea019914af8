//! Connections: how they are lent, used and given up.

use crate::catalog::column;
use crate::config::PostgresConfig;
use crate::connect::{self, Door};
use crate::errors::{Answer, Attempt, Failure, Stakes, Trouble, explain, no_connection};
use crate::names::Names;
use crate::one_statement::{NO_TYPES, Shapes};
use crate::shared_reads::SharedReads;
use crate::tls::Tls;
use atlas_kvs::KvsError;
use deadpool_postgres::{Client, Object, Pool};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// How much longer than its own limit a server is waited for.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 5;

pub(crate) type Param<'a> = &'a (dyn ToSql + Sync);

/// The server as seen from here: a pool of connections to one database, and the names of one namespace.
pub(crate) struct Server {
    pub(crate) config: PostgresConfig,
    pub(crate) names: Names,
    tls: Tls,
    door: Door,
    pool: Pool,
    pub(crate) shapes: Shapes,
    pub(crate) reads: Arc<SharedReads>,
}

impl Server {
    pub(crate) async fn new(config: PostgresConfig) -> atlas_kvs::Result<Server> {
        if config.namespace.is_empty() {
            return Err(KvsError::Misconfigured {
                reason: "a namespace has at least one character".to_owned(),
                source: None,
            });
        }
        let tls = Tls::new(&config).await?;
        let door = Door::new(&config, &tls).await?;
        let pool = door.pool(&config)?;
        let names = Names::new(&config.namespace);
        let (shapes, reads) = (Shapes::default(), Arc::default());
        Ok(Server { config, names, tls, door, pool, shapes, reads })
    }

    /// A connection that nobody else uses.
    pub(crate) async fn session(&self) -> Attempt<Session> {
        let client = self.pool.get().await.map_err(|error| no_connection(error, &self.config))?;
        let timeout = self.config.statement_timeout;
        Ok(Session { client: Some(client), busy: false, in_transaction: false, timeout, tls: self.tls.clone() })
    }

    /// A connection for work that lasts longer than a call, and must not keep others waiting for one of the pool.
    pub(crate) async fn own_connection(&self) -> atlas_kvs::Result<tokio_postgres::Client> {
        self.check_open()?;
        self.door.open().await.map_err(|error| match no_connection(error, &self.config) {
            Trouble::Final(error) | Trouble::Again(error) => error,
        })
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

    /// A statement that will hardly be used again.
    pub(crate) fn forget_statement(&self, sql: &str) {
        self.pool.manager().statement_caches.remove(sql, NO_TYPES);
    }

    /// Runs a statement that changes nothing.
    pub(crate) async fn read(&self, sql: &str, params: &[Param<'_>]) -> Attempt<Vec<Row>> {
        let mut session = self.session().await?;
        session.query(sql, params).await.map_err(|failure| explain(failure, Stakes::Read))
    }

    /// What each connection was checked to lead to.
    pub(crate) async fn identity(&self) -> Attempt<String> {
        let rows = self.read(connect::IDENTITY, &[]).await?;
        let row = rows.first().ok_or_else(|| KvsError::corrupt("the server", "it has no identity"))?;
        column(row, 0, "the server")
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
    tls: Tls,
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
        let (cancel, tls) = (client.cancel_token(), self.tls.clone());
        let closed = client.is_closed();
        drop(Object::take(client));
        // The server looks at the connection only when it has something to say.
        if let (false, Ok(runtime)) = (closed, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                // Best effort: without it the statement runs until its time-out.
                let _ = tokio::time::timeout(SILENCE, tls.cancel(&cancel)).await;
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
