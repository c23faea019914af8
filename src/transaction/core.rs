//! What all transactions of a store share.

use super::buffer::TableWrites;
use super::constraint::Constraint;
use super::mend::Mender;
use super::pipeline::Pipeline;
use super::step_by_step::StepByStep;
use super::table::TransactionTable;
use super::tracker::SnapshotTracker;
use crate::config::TransactionConfig;
use crate::schema::TableSpec;
use crate::timestamp::TimestampOracle;
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, TableKind, TableRef};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// The parts a transaction works with.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) kvs: Arc<dyn KeyValueService>,
    pub(crate) oracle: Arc<TimestampOracle>,
    pub(crate) tracker: Arc<SnapshotTracker>,
    pub(crate) entries: Arc<TransactionTable>,
    pub(crate) schema: SchemaCache,
    pub(crate) constraints: RwLock<HashMap<TableRef, Vec<Constraint>>>,
    pub(crate) config: TransactionConfig,
    pub(crate) mender: Arc<Mender>,
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

impl CommitPath {
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
}

#[derive(Debug, Default)]
struct Specs {
    by_table: HashMap<TableRef, TableSpec>,
    /// Raised whenever something is forgotten: what was looked up before that may be outdated.
    generation: u64,
}

impl SchemaCache {
    pub(crate) fn new(kvs: Arc<dyn KeyValueService>) -> SchemaCache {
        SchemaCache { kvs, specs: RwLock::default() }
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
}

impl Core {
    /// Step 1: constraints, before anything is written.
    pub(crate) fn check_constraints(&self, table: &TableRef, writes: &TableWrites) -> Result<()> {
        let constraints = self.constraints.read();
        let Some(constraints) = constraints.get(table) else { return Ok(()) };
        for (cell, value) in writes {
            for constraint in constraints {
                constraint.check(table, cell, value.as_ref())?;
            }
        }
        Ok(())
    }
}
