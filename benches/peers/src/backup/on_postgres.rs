//! The same on Postgres, beside `pg_dump` and `pg_restore` of the same schema, compressed by neither.

use super::{Timed, VALUE_LEN, command};
use crate::contenders::atlas::{Handle, on_postgres, schema};
use crate::contenders::postgres;
use crate::drive::tasks;
use crate::measure::settle;
use crate::options::Plan;
use crate::workload::Job;
use anyhow::Result;
use atlas::Atlas;
use atlas::ops::{BackupRequest, Operations, no_progress};
use atlas::schema::ConflictHandler;
use std::time::Instant;
use tokio::runtime::Runtime;

const NAMESPACE: &str = "bench_backup";
/// Bytes of a key beside its value.
const KEY_LEN: usize = 17;

pub(super) fn run(plan: &Plan, runtime: &Runtime) -> Result<Vec<Timed>> {
    let directory = plan.dir.join("backup-postgres");
    std::fs::create_dir_all(&directory)?;
    let (dump, repository) = (directory.join("schema.dump"), directory.join("repository"));
    let cells = (plan.backup_bytes / VALUE_LEN as u64).max(2);
    let config = on_postgres(NAMESPACE, true);
    let server = postgres::server();
    let schema = schema(NAMESPACE);
    let drop_schema = || runtime.block_on(postgres::drop_schema(&server, &schema));

    drop_schema()?;
    let open = || runtime.block_on(Handle::open(config.clone(), ConflictHandler::default()));
    let mut handle = open()?;
    tasks(runtime, std::iter::repeat_n(handle.clone(), 4), &Job::fill(cells, VALUE_LEN), 1)?;
    let mut seconds: [Vec<f64>; 4] = Default::default();
    for _ in 0..plan.rounds {
        settle(plan.patience);
        let mut time = |place: usize, work: &dyn Fn() -> Result<()>| -> Result<()> {
            let begun = Instant::now();
            work()?;
            seconds[place].push(begun.elapsed().as_secs_f64());
            Ok(())
        };
        time(0, &|| {
            let schema = format!("--schema={schema}");
            let file = format!("--file={}", dump.display());
            command("pg_dump", &["-Fc".as_ref(), "-Z0".as_ref(), schema.as_ref(), file.as_ref()])?;
            Ok(std::fs::File::open(&dump)?.sync_all()?)
        })?;
        time(1, &|| {
            let request = BackupRequest {
                repository: repository.clone(),
                name: None,
                reason: None,
                portable: false,
                rate_limit: None,
            };
            runtime.block_on(handle.atlas.backup_create(request, no_progress()))?;
            Ok(())
        })?;
        runtime.block_on(handle.atlas.close())?;
        drop_schema()?;
        time(2, &|| {
            let database = format!("--dbname={}", server.database);
            command("pg_restore", &[database.as_ref(), dump.as_ref()])
        })?;
        drop_schema()?;
        time(3, &|| {
            runtime.block_on(Atlas::restore(&config, &repository, "latest", no_progress()))?;
            Ok(())
        })?;
        handle = open()?;
    }
    runtime.block_on(handle.atlas.close())?;
    drop_schema()?;
    std::fs::remove_dir_all(&directory)?;
    let bytes = cells * (VALUE_LEN + KEY_LEN) as u64;
    let titles = ["pg_dump -Fc -Z0, synced", "atlas backup create", "pg_restore", "atlas backup restore"];
    Ok(titles.into_iter().zip(seconds).map(|(title, seconds)| Timed::of(title, bytes, seconds)).collect())
}
