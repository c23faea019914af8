//! `atlas demo`.

use super::Context;
use super::args::DemoArgs;
use super::backend::Backend;
use super::output::{Outcome, Reply, pairs};
use crate::config::AtlasConfig;
use crate::demo::{self, Plan, Stage};
use crate::ops::{Operations, ProgressSink};
use crate::{Error, Result};
use async_trait::async_trait;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

pub(crate) async fn run(args: DemoArgs, context: &Context) -> Outcome {
    let reporter = context.reporter();
    let stage = BackendStage { context, progress: reporter.sink() };
    let config = context.config()?.config.clone();
    let plan = Plan { config, dir: args.dir, seconds: args.seconds, tasks: args.tasks, keep: args.keep };
    let report = demo::run(&plan, &stage).await?;
    drop(reporter);
    let table = format!("{}\n\nEvery cell is as it was at the backup timestamp.", pairs(report.rows()));
    let plain = report.rows().iter().map(|(name, value)| format!("{name}\t{value}")).collect::<Vec<_>>().join("\n");
    Ok(Reply::new(json!(report), plain, table))
}

/// The demo on what the program itself operates on.
struct BackendStage<'a> {
    context: &'a Context,
    progress: ProgressSink,
}

#[async_trait]
impl Stage for BackendStage<'_> {
    async fn open(&self, config: &AtlasConfig) -> Result<Arc<dyn Operations>> {
        let operations = self.context.backend.open_store(config).await?;
        // Also if the demo is interrupted.
        self.context.keep_until_the_end(operations.clone());
        Ok(operations)
    }

    async fn restore(&self, repository: &Path, id: &str, target: &AtlasConfig) -> Result<()> {
        let backend: &dyn Backend = &*self.context.backend;
        backend.backup_restore(repository, id, target, self.progress.clone()).await.map(drop)
    }

    async fn exists(&self, config: &AtlasConfig) -> Result<bool> {
        match self.context.backend.check_exists(config).await {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn destroy(&self, config: &AtlasConfig) -> Result<()> {
        self.context.backend.destroy(config).await
    }

    fn progress(&self) -> ProgressSink {
        self.progress.clone()
    }

    fn say(&self, text: &str) {
        self.context.note(text);
    }
}
