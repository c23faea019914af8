//! What all transactions of a store share.

use super::buffer::TableWrites;
use super::cell_cache::CellCache;
use super::constraint::Constraint;
use super::entry::Fate;
use super::handle::Seen;
use super::mend::Mender;
use super::pipeline::Pipeline;
use super::step_by_step::StepByStep;
use super::swept::SweptTables;
use super::table::TransactionTable;
use super::tracker::SnapshotTracker;
use crate::config::TransactionConfig;
use crate::rule::Rule;
use crate::schema::{ConflictHandler, TableSpec};
use crate::timestamp::TimestampOracle;
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, TableKind, TableRef, Timestamp};
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The parts a transaction works with.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) kvs: Arc<dyn KeyValueService>,
    pub(crate) oracle: Arc<TimestampOracle>,
    pub(crate) tracker: Arc<SnapshotTracker>,
    pub(crate) entries: Arc<TransactionTable>,
    pub(crate) schema: Arc<SchemaCache>,
    pub(crate) constraints: RwLock<HashMap<TableRef, Vec<Constraint>>>,
    pub(crate) config: TransactionConfig,
    pub(crate) mender: Arc<Mender>,
    pub(crate) swept: SweptTables,
    /// Where one leader commits for all.
    pub(crate) cells: Option<Arc<CellCache>>,
    pub(crate) path: CommitPath,
}

/// How transactions commit on this store.
#[derive(Debug)]
pub(crate) enum CommitPath {
    /// Mode B: groups of commits, one batch and one sync each, in the order of one leader.
    Pipeline(Pipeline),
    /// Mode A: each by itself, with locks, in ten steps.
    StepByStep(Box<StepByStep>),
}

impl Core {
    /// Waits until everything that a transaction has seen is durable.
    pub(crate) async fn landed(&self, seen: &Seen) -> Result<()> {
        match (&seen.on_its_way, &self.path) {
            (Some(dependency), CommitPath::Pipeline(pipeline)) if Rule::TellWhatHasLanded.is_kept() => {
                pipeline.landed(dependency, seen.start_ts).await
            }
            _ => Ok(()),
        }
    }
}

impl CommitPath {
    /// True where versions carry their commit timestamp, and one leader alone writes entries.
    pub(crate) fn writes_commit_timestamps(&self) -> bool {
        matches!(self, CommitPath::Pipeline(_))
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            CommitPath::Pipeline(_) => "pipeline",
            CommitPath::StepByStep(_) => "step_by_step",
        }
    }
}

/// Specifications of tables, as the store has them.
#[derive(Debug)]
pub(crate) struct SchemaCache {
    kvs: Arc<dyn KeyValueService>,
    specs: RwLock<Specs>,
    // The greatest of `Specs::changed`, for those who need not look further.
    last_change: AtomicU64,
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Specs {
    // Looked into by every read and write.
    by_table: HashMap<TableRef, TableSpec, foldhash::fast::RandomState>,
    /// Raised whenever something is forgotten: what was looked up before that may be outdated.
    generation: u64,
    /// When each table was changed since the store was opened; the greatest timestamp while a change is under way.
    changed: HashMap<TableRef, Timestamp>,
    /// Handlers of tables that were dropped, and the last timestamp issued by then, for as long as somebody may have
    /// used them.
    dropped: HashMap<TableRef, (ConflictHandler, Timestamp)>,
}

impl SchemaCache {
    pub(crate) fn new(kvs: Arc<dyn KeyValueService>) -> SchemaCache {
        SchemaCache {
            kvs,
            specs: RwLock::default(),
            last_change: AtomicU64::new(0),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// The specification of a table of the application.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such table.
    pub(crate) async fn spec(&self, table: &TableRef) -> Result<TableSpec> {
        let generation = {
            let specs = self.specs.read();
            if let Some(spec) = specs.by_table.get(table) {
                return Ok(*spec);
            }
            specs.generation
        };
        TableSpec::check_name(table)?;
        let description = self
            .kvs
            .table(table)
            .await?
            .filter(|found| found.kind == TableKind::Versioned)
            .ok_or_else(|| Error::NotFound { what: format!("table '{table}'") })?;
        let spec = TableSpec::from_description(&description)?;
        let mut specs = self.specs.write();
        if specs.generation == generation {
            specs.by_table.insert(table.clone(), spec);
        }
        Ok(spec)
    }

    /// Forgets what was known of a table, because it was changed or removed.
    pub(crate) fn forget(&self, table: &TableRef) {
        let mut specs = self.specs.write();
        specs.by_table.remove(table);
        specs.generation += 1;
    }

    /// A table with this handler is about to be dropped. Of earlier ones those are forgotten that were dropped before
    /// the oldest open transaction began.
    pub(crate) fn begin_drop(&self, table: &TableRef, handler: ConflictHandler, now: Timestamp, oldest: Timestamp) {
        let mut specs = self.specs.write();
        specs.dropped.retain(|_, (_, dropped_at)| *dropped_at >= oldest);
        specs.dropped.insert(table.clone(), (handler, now));
    }

    /// Whether a table of this name was dropped that had another handler: making it is a change to those who used it.
    pub(crate) fn had_another_handler(&self, table: &TableRef, handler: ConflictHandler) -> bool {
        self.specs.read().dropped.get(table).is_some_and(|(dropped, _)| *dropped != handler)
    }

    /// What the table promises is about to change: from now on nobody who uses it commits, until
    /// [`end_change`](Self::end_change) tells since when the new promises hold.
    pub(crate) fn begin_change(&self, table: &TableRef) {
        self.set_changed(table, || Timestamp::MAX);
    }

    /// Transactions that read below `changed_at` must not commit if they used the table: they worked by its old
    /// promises, and those that come later rely on the new ones. A number above all that were issued by then: it is
    /// asked for when what was known of the table is forgotten, so that nobody can begin above it and know the old.
    pub(crate) fn end_change(&self, table: &TableRef, changed_at: impl FnOnce() -> Timestamp) {
        self.set_changed(table, changed_at);
    }

    /// One change at a time: the end of one must not let those commit who worked during another one.
    pub(crate) async fn one_at_a_time(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    fn set_changed(&self, table: &TableRef, changed_at: impl FnOnce() -> Timestamp) {
        let mut specs = self.specs.write();
        let changed_at = changed_at();
        specs.by_table.remove(table);
        specs.generation += 1;
        specs.changed.insert(table.clone(), changed_at);
        let last = specs.changed.values().copied().max().unwrap_or(changed_at);
        self.last_change.store(last.get(), Ordering::SeqCst);
    }

    /// The first of `tables` that was changed since a transaction with this snapshot began.
    pub(crate) fn changed_since<'a>(&self, tables: &'a [TableRef], read_ts: Timestamp) -> Option<&'a TableRef> {
        if self.last_change.load(Ordering::SeqCst) < read_ts.get() {
            return None;
        }
        let specs = self.specs.read();
        tables.iter().find(|table| specs.changed.get(*table).is_some_and(|changed_at| *changed_at >= read_ts))
    }
}

impl Core {
    /// The fates of writers that have ended, whoever they were: one without an entry is rolled back, by writing, so that
    /// it can't commit later. Only for writers below what sweep was granted: nobody of this process runs there.
    pub(crate) async fn decide_ended(&self, writers: &[Timestamp]) -> Result<BTreeMap<Timestamp, Fate>> {
        let mut fates = self.entries.fates(writers).await?;
        for (writer, fate) in &mut fates {
            if *fate == Fate::Undecided && Rule::DecideBeforeSweep.is_kept() {
                *fate = match &self.path {
                    CommitPath::StepByStep(steps) => steps.roll_back(*writer).await?,
                    // The leader alone writes entries.
                    CommitPath::Pipeline(pipeline) => {
                        pipeline.roll_back(*writer).await?;
                        Fate::RolledBack
                    }
                };
            }
        }
        Ok(fates)
    }

    /// Step 1: constraints, before anything is written.
    pub(crate) fn check_constraints(&self, table: &TableRef, writes: &TableWrites) -> Result<()> {
        let constraints = self.constraints.read();
        let Some(constraints) = constraints.get(table) else { return Ok(()) };
        for (cell, value) in writes.iter() {
            for constraint in constraints {
                constraint.check(table, cell, value.as_ref())?;
            }
        }
        Ok(())
    }
}
