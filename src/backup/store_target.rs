//! A restore's target that is a namespace of a store on a server, whatever store that is.
//!
//! There is no directory to lock and no file to put a marker into. One record of the store is both: it says that a
//! restore is under way, which keeps every other opener out, and who works on it, which keeps other restores out.
//!
//! ```text
//!   no record ── set by compare-and-set, when everything is empty ── { claim, renewal 0, 1, 2 …, marker } ── removed
//!                                                                       │
//!                a resume that saw no renewal for a whole lease takes over: another claim, and the first one stops
//! ```

use super::nodes::NodeCommands;
use super::restore::{Claim, CopyIn, RestoreMarker, RestoreTarget};
use crate::config::CommitModeChoice;
use crate::schema::{MetaRecord, Replaced, RestoringRecord, StoreRecord, meta_table};
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_kvs::{AtomicScan, Cell, CheckAndSet, KeyValueService, RowRange};
use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

/// Connects to the store, without looking for a marker. Given by whoever knows which store that is.
pub type ConnectionOpener = Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn KeyValueService>>> + Send + Sync>;

/// How long a restore may be silent before another one takes it for dead.
const LEASE: Duration = Duration::from_secs(10);

/// A namespace of a store to restore into. It is connected to when it is first needed; the connection is given up with the
/// last clone.
#[derive(Clone)]
pub struct StoreTarget {
    location: String,
    store: String,
    namespace: String,
    opener: ConnectionOpener,
    commit_mode: CommitModeChoice,
    nodes: Option<NodeCommands>,
    lease: Duration,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    kvs: OnceCell<Arc<dyn KeyValueService>>,
    // Held while the record is written, so that a renewal and a step don't take each other for strangers.
    claimed: Mutex<Option<Claimed>>,
}

/// What this attempt knows of the record.
struct Claimed {
    claim: Uuid,
    /// The record as it stands, once it does.
    standing: Option<(RestoringRecord, Bytes)>,
    /// Another attempt took over.
    lost: bool,
}

impl StoreTarget {
    /// The namespace `namespace` of a store of adapter `store` at `location` (for people) that `opener` connects to.
    pub fn new(
        location: impl Into<String>,
        store: impl Into<String>,
        namespace: impl Into<String>,
        opener: ConnectionOpener,
    ) -> StoreTarget {
        StoreTarget {
            location: location.into(),
            store: store.into(),
            namespace: namespace.into(),
            opener,
            commit_mode: CommitModeChoice::Auto,
            nodes: None,
            lease: LEASE,
            shared: Arc::default(),
        }
    }

    /// The same, for a store on which transactions will commit in this way.
    pub fn committing(self, commit_mode: CommitModeChoice) -> StoreTarget {
        StoreTarget { commit_mode, ..self }
    }

    /// The same, with commands that load files into the nodes of a cluster.
    pub fn with_nodes(self, nodes: NodeCommands) -> StoreTarget {
        StoreTarget { nodes: Some(nodes), ..self }
    }

    /// The same, taken for dead by others after being silent for so long.
    pub fn with_lease(self, lease: Duration) -> StoreTarget {
        StoreTarget { lease, ..self }
    }

    async fn kvs(&self) -> Result<&Arc<dyn KeyValueService>> {
        self.shared.kvs.get_or_try_init(|| (self.opener)()).await
    }

    async fn record(&self) -> Result<MetaRecord<RestoringRecord>> {
        Ok(RestoringRecord::in_store(Arc::clone(self.kvs().await?)))
    }

    /// Waits for a lease whether the attempt that wrote the record lives, and takes over if it does not.
    async fn take_over(&self, first: RestoringRecord) -> Result<Claimed> {
        let in_use = |found: &RestoringRecord| Error::StoreInUse { place: self.location.clone(), pid: Some(found.pid) };
        tokio::time::sleep(Duration::from_millis(first.lease_ms).max(self.lease)).await;
        let (found, bytes) = match RestoringRecord::load(self.kvs().await?).await? {
            Some((now, _)) if (now.claim, now.renewal) != (first.claim, first.renewal) => return Err(in_use(&now)),
            Some(same) => same,
            None => return Err(Error::NotFound { what: format!("unfinished restore in {}", self.location) }),
        };
        let claim = Uuid::new_v4();
        let ours = RestoringRecord { claim, renewal: 0, host: host(), pid: std::process::id(), ..found };
        let standing = match self.record().await?.replace(Some(&bytes), Some(&ours)).await? {
            Replaced::Done(bytes) => (ours, bytes),
            // A write of ours whose answer was lost on the way.
            Replaced::Other(Some((now, bytes))) if now.claim == claim => (now, bytes),
            Replaced::Other(other) => return Err(in_use(other.as_ref().map_or(&first, |(now, _)| now))),
        };
        Ok(Claimed { claim, standing: Some(standing), lost: false })
    }

    /// Writes what `change` makes of the record; fails for good once another attempt has it.
    async fn write(
        &self,
        change: impl FnOnce(Option<&RestoringRecord>, Uuid) -> Option<RestoringRecord> + Send,
    ) -> Result<()> {
        let mut claimed = self.shared.claimed.lock().await;
        let claimed = claimed.as_mut().ok_or_else(|| self.lost())?;
        let next = change(claimed.standing.as_ref().map(|(record, _)| record), claimed.claim);
        self.replace(claimed, next).await
    }

    async fn replace(&self, claimed: &mut Claimed, next: Option<RestoringRecord>) -> Result<()> {
        if claimed.lost {
            return Err(self.lost());
        }
        let standing = claimed.standing.as_ref().map(|(_, bytes)| bytes);
        match self.record().await?.replace(standing, next.as_ref()).await? {
            Replaced::Done(bytes) => claimed.standing = next.map(|next| (next, bytes)),
            // A write of ours whose answer was lost on the way.
            Replaced::Other(Some(found)) if Some(&found.0) == next.as_ref() => claimed.standing = Some(found),
            Replaced::Other(None) if next.is_none() => claimed.standing = None,
            Replaced::Other(found) => {
                claimed.lost = true;
                let in_use = |pid| Error::StoreInUse { place: self.location.clone(), pid: Some(pid) };
                return Err(found.map_or_else(|| self.lost(), |(found, _)| in_use(found.pid)));
            }
        }
        Ok(())
    }

    async fn renew(&self) -> Result<()> {
        let mut claimed = self.shared.claimed.lock().await;
        let Some(claimed) = claimed.as_mut() else { return Ok(()) };
        // Without a record there is nothing to renew, and with another attempt's record nothing of ours.
        let Some((record, _)) = claimed.standing.as_ref().filter(|_| !claimed.lost) else { return Ok(()) };
        let next = RestoringRecord { renewal: record.renewal + 1, ..record.clone() };
        self.replace(claimed, Some(next)).await
    }

    async fn renew_regularly(self) {
        loop {
            tokio::time::sleep(self.lease / 5).await;
            if let Err(error) = self.renew().await {
                tracing::warn!(%error, "the claim of a restore was not renewed");
            }
        }
    }

    fn lost(&self) -> Error {
        Error::refused(
            format!("this restore into {} was given up: another one took it over", self.location),
            "let the other one finish",
        )
    }

    /// What the namespace holds that a restore would mix with.
    async fn content(&self) -> Result<Option<String>> {
        let kvs = self.kvs().await?;
        for table in kvs.tables().await? {
            if table.table != meta_table() {
                return Ok(Some(format!("table '{}'", table.table)));
            }
            if let Some(record) = self.records().await?.into_iter().find(|(cell, _)| !is_marker(cell)) {
                return Ok(Some(format!("record '{}'", String::from_utf8_lossy(&record.0.row))));
            }
        }
        Ok(None)
    }

    async fn records(&self) -> Result<Vec<(Cell, Bytes)>> {
        Ok(self.kvs().await?.scan_atomic(&meta_table(), AtomicScan::new(RowRange::all())).try_collect().await?)
    }

    async fn refuse_content(&self) -> Result<()> {
        match self.content().await? {
            None => Ok(()),
            Some(found) => Err(Error::refused(
                format!("a backup is restored into an empty store only, and {} holds {found}", self.location),
                "name a new namespace in the configuration given by --into, or drop what is there",
            )),
        }
    }
}

fn is_marker(cell: &Cell) -> bool {
    cell.row == RestoringRecord::NAME
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[async_trait]
impl RestoreTarget for StoreTarget {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn check_apart(&self, _repository: &Path) -> Result<()> {
        Ok(())
    }

    fn store(&self) -> &str {
        &self.store
    }

    fn namespace(&self) -> Option<&str> {
        Some(&self.namespace)
    }

    fn commit_mode(&self) -> CommitModeChoice {
        self.commit_mode
    }

    fn node_commands(&self) -> Option<&NodeCommands> {
        self.nodes.as_ref()
    }

    async fn claim(&self) -> Result<Claim> {
        let claimed = match RestoringRecord::load(self.kvs().await?).await? {
            Some((found, _)) => self.take_over(found).await?,
            // The record is the claim, and it is written when the store is known to be empty.
            None => Claimed { claim: Uuid::new_v4(), standing: None, lost: false },
        };
        *self.shared.claimed.lock().await = Some(claimed);
        Ok(Claim::new(AbortOnDropHandle::new(tokio::spawn(self.clone().renew_regularly()))))
    }

    async fn check_empty(&self, _bytes: u64) -> Result<()> {
        // The more helpful of the two refusals first.
        crate::schema::refuse_unfinished_restore(self.kvs().await?).await?;
        self.refuse_content().await
    }

    async fn marker(&self) -> Result<Option<RestoreMarker>> {
        let Some((record, _)) = RestoringRecord::load(self.kvs().await?).await? else { return Ok(None) };
        RestoreMarker::of_json(&self.location, record.marker).map(Some)
    }

    async fn set_marker(&self, marker: &RestoreMarker) -> Result<()> {
        let is_first = self.shared.claimed.lock().await.as_ref().is_some_and(|claimed| claimed.standing.is_none());
        if is_first {
            MetaRecord::<StoreRecord>::create_table(self.kvs().await?.as_ref()).await?;
        }
        let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        self.write(|standing, claim| {
            Some(RestoringRecord {
                claim,
                renewal: standing.map_or(0, |record| record.renewal + 1),
                lease_ms,
                host: host(),
                pid: std::process::id(),
                backup_id: marker.backup_id.clone(),
                step: marker.step.name().to_owned(),
                marker: serde_json::to_value(marker).expect("a marker is plain data"),
            })
        })
        .await?;
        if is_first && let Err(error) = self.refuse_content().await {
            // Somebody opened the store between our look and the marker: it is his.
            self.remove_marker().await?;
            return Err(error);
        }
        Ok(())
    }

    async fn lay_down(&self, _copy: CopyIn) -> Result<()> {
        Err(Error::refused(
            format!("{} is no directory that files could be laid into", self.location),
            "restore a backup that was taken of such a store, or a portable one",
        ))
    }

    async fn clear(&self) -> Result<()> {
        let kvs = self.kvs().await?;
        for table in kvs.tables().await? {
            if table.table != meta_table() {
                kvs.drop_table(&table.table).await?;
            }
        }
        for (cell, bytes) in self.records().await? {
            if is_marker(&cell) {
                continue;
            }
            match kvs.check_and_set(&meta_table(), &cell, Some(bytes), None).await? {
                CheckAndSet::Applied | CheckAndSet::Mismatch(None) => (),
                CheckAndSet::Mismatch(Some(_)) => {
                    return Err(Error::refused(
                        format!("somebody else writes into {}, which is being restored", self.location),
                        "stop every process that uses the store, then repeat the command with --resume",
                    ));
                }
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<Arc<dyn KeyValueService>> {
        self.kvs().await.cloned()
    }

    async fn close(&self, _kvs: &Arc<dyn KeyValueService>) -> Result<()> {
        // The marker lies in it, so the connection is needed to the end.
        Ok(())
    }

    async fn remove_marker(&self) -> Result<()> {
        self.write(|_, _| None).await
    }
}
