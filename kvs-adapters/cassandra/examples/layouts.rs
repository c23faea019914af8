//! Measures the layout of this adapter against one in which the data lie in the index itself.
//!
//! ```text
//!   cells     a partition for each cell, and an index of bounded buckets beside        (what the adapter does)
//!   buckets   ((bucket), key, ts): cells and their versions in the buckets, in order   (one write a put, no second read)
//! ```
//!
//! Run it beside a cluster, which it fills and leaves as it was:
//!
//! ```text
//!   scripts/with-cassandra cargo run --release -p atlas-kvs-cassandra --example layouts -- [CELLS [VERSIONS…]]
//! ```
//!
//! `cells` is the adapter itself, with everything that it does. `buckets` is the bare statements, and it is spared what it
//! would have to do besides: its buckets are known beforehand, none is ever split, and nobody writes marks. What can't be
//! spared is that a cell may lie in any bucket on the way from the root, because what is in a bucket stays there when it
//! is split: `get` is shown for cells that are looked for in one bucket, and in three.

use atlas_kvs::{Cell, CellBound, KeyValueService, RowRange, Scan, TableKind, TableRef, Timestamp, Value};
use atlas_kvs_cassandra::{CassandraConfig, CassandraStore};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;
use std::error::Error;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

const CONCURRENCY: usize = 64;
const VALUE_LEN: usize = 100;
const GETS: usize = 10_000;
const SHORT_SCANS: usize = 300;
const SHORT_SCAN_CELLS: usize = 20;
/// Keys a bucket holds, as in the adapter.
const BUCKET_KEYS: usize = 10_000;

fn row(number: usize) -> String {
    format!("account/{number:08}")
}

/// Visits all numbers below `of` in an order that has nothing to do with theirs.
fn shuffled(of: usize) -> impl Iterator<Item = usize> + Clone {
    (0..of).map(move |number| number.wrapping_mul(1_000_003) % of)
}

fn bucket(number: usize) -> Vec<u8> {
    format!("account/{:04}", number / BUCKET_KEYS).into_bytes()
}

#[derive(Default)]
struct Figures {
    put: f64,
    get: f64,
    get_of_three: Option<f64>,
    scan: f64,
    short_scan: Duration,
}

fn rate(count: usize, begin: Instant) -> f64 {
    count as f64 / begin.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let cells = arguments.next().transpose()?.unwrap_or(20_000);
    let mut of_versions = arguments.collect::<Result<Vec<_>, _>>()?;
    if of_versions.is_empty() {
        of_versions = vec![1, 10];
    }
    println!("{cells} cells, values of {VALUE_LEN} bytes, {CONCURRENCY} requests at a time, QUORUM");
    println!(
        "layout   versions      puts/s      gets/s   in 3 buckets   scanned cells/s   scan of {SHORT_SCAN_CELLS} cells, mean"
    );
    for versions in of_versions {
        show("cells", versions, &in_cells(cells, versions).await?);
        show("buckets", versions, &in_buckets(cells, versions).await?);
    }
    Ok(())
}

fn show(layout: &str, versions: usize, figures: &Figures) {
    let Figures { put, get, get_of_three, scan, short_scan } = figures;
    let of_three = get_of_three.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
    let short = short_scan.as_secs_f64() * 1e3;
    println!("{layout:8} {versions:8} {put:11.0} {get:11.0} {of_three:>14} {scan:17.0} {short:22.2} ms");
}

async fn in_cells(cells: usize, versions: usize) -> Outcome<Figures> {
    let config = CassandraConfig::from_env(format!("layouts_{}", std::process::id()))?;
    let store = CassandraStore::connect(config.clone()).await?;
    let table = TableRef::new("cells")?;
    store.create_table(&table, TableKind::Versioned, Bytes::new()).await?;
    let cell = |number: usize| Cell::copy_from(row(number), "balance");
    let mut figures = Figures::default();

    let begin = Instant::now();
    for version in 1..=versions {
        let ts = Timestamp::saturating(version as u64);
        let numbers: Vec<usize> = shuffled(cells).collect();
        for part in numbers.chunks(1_000) {
            let put = part.iter().map(|&number| (cell(number), Bytes::from(vec![b'v'; VALUE_LEN]))).collect();
            store.put(vec![(table.clone(), put)], ts).await?;
        }
    }
    figures.put = rate(cells * versions, begin);

    let numbers: Vec<usize> = shuffled(cells).cycle().take(GETS).collect();
    let begin = Instant::now();
    for part in numbers.chunks(1_000) {
        let asked: Vec<_> = part.iter().map(|&number| CellBound::new(cell(number), Timestamp::MAX)).collect();
        let found = store.get(&table, &asked).await?;
        assert!(found.iter().all(|value| value.as_ref().is_some_and(|value| value.ts.get() == versions as u64)));
    }
    figures.get = rate(GETS, begin);

    let begin = Instant::now();
    let all: Vec<(Cell, Value)> = store.scan(&table, Scan::new(RowRange::all(), Timestamp::MAX)).try_collect().await?;
    assert_eq!(all.len(), cells);
    figures.scan = rate(cells, begin);

    let begin = Instant::now();
    for number in shuffled(cells - SHORT_SCAN_CELLS).take(SHORT_SCANS) {
        let rows = RowRange::new(row(number), row(number + SHORT_SCAN_CELLS));
        let some: Vec<_> = store.scan(&table, Scan::new(rows, Timestamp::MAX)).try_collect().await?;
        assert_eq!(some.len(), SHORT_SCAN_CELLS);
    }
    figures.short_scan = begin.elapsed() / SHORT_SCANS as u32;
    let keyspace = store.keyspace().to_owned();
    store.close().await?;
    session(&config).await?.query_unpaged(format!("DROP KEYSPACE {keyspace}"), ()).await?;
    Ok(figures)
}

async fn session(config: &CassandraConfig) -> Outcome<Session> {
    Ok(SessionBuilder::new().known_nodes(&config.contact_points).build().await?)
}

async fn in_buckets(cells: usize, versions: usize) -> Outcome<Figures> {
    let config = CassandraConfig::from_env("unused")?;
    let session = session(&config).await?;
    let keyspace = format!("layouts_buckets_{}", std::process::id());
    let copies = std::env::var("ATLAS_CASSANDRA_REPLICATION").unwrap_or_else(|_| "1".to_owned());
    let replication = format!("{{'class': 'SimpleStrategy', 'replication_factor': {copies}}}");
    session.query_unpaged(format!("CREATE KEYSPACE {keyspace} WITH replication = {replication}"), ()).await?;
    let table = format!("{keyspace}.t");
    let definition = format!(
        "CREATE TABLE {table} (bucket blob, key blob, ts bigint, v blob, PRIMARY KEY ((bucket), key, ts)) \
         WITH CLUSTERING ORDER BY (key ASC, ts DESC) AND compaction = {{'class': 'LeveledCompactionStrategy'}}"
    );
    session.query_unpaged(definition, ()).await?;
    let put = prepare(&session, format!("INSERT INTO {table} (bucket, key, ts, v) VALUES (?, ?, ?, ?)")).await?;
    let one = format!("SELECT ts, v FROM {table} WHERE bucket = ? AND key = ? AND ts < ? LIMIT 1");
    let get = prepare(&session, one).await?;
    let some = format!("SELECT key, ts, v FROM {table} WHERE bucket = ? AND key >= ? AND key < ?");
    let scan = prepare(&session, some).await?;
    let key = |number: usize| {
        let mut key = Vec::new();
        atlas_kvs::key::push_part(&mut key, row(number).as_bytes());
        atlas_kvs::key::push_part(&mut key, b"balance");
        key
    };
    let mut figures = Figures::default();

    let begin = Instant::now();
    for version in 1..=versions as i64 {
        let writes = shuffled(cells).map(|number| {
            let values = (bucket(number), key(number), version, vec![b'v'; VALUE_LEN]);
            let (session, put) = (&session, &put);
            async move { session.execute_unpaged(put, values).await }
        });
        stream::iter(writes).buffer_unordered(CONCURRENCY).try_for_each(|_| std::future::ready(Ok(()))).await?;
    }
    figures.put = rate(cells * versions, begin);

    for buckets in [1, 3] {
        let begin = Instant::now();
        let reads = shuffled(cells).cycle().take(GETS).flat_map(|number| {
            // The others are on the way to the root, and hold other keys.
            (0..buckets).map(move |level| (number, if level == 0 { bucket(number) } else { vec![level] }))
        });
        let reads = reads.map(|(number, bucket)| {
            let values = (bucket, key(number), i64::MAX);
            let (session, get) = (&session, &get);
            async move { session.execute_unpaged(get, values).await }
        });
        let answers = stream::iter(reads).buffer_unordered(CONCURRENCY);
        answers.try_for_each(|_| std::future::ready(Ok(()))).await?;
        match buckets {
            1 => figures.get = rate(GETS, begin),
            _ => figures.get_of_three = Some(rate(GETS, begin)),
        }
    }

    let begin = Instant::now();
    let mut seen = 0;
    for part in 0..cells.div_ceil(BUCKET_KEYS) {
        let bounds = (bucket(part * BUCKET_KEYS), vec![0], vec![0xff]);
        seen += newest_of_each(&session, &scan, bounds).await?;
    }
    assert_eq!(seen, cells);
    figures.scan = rate(cells, begin);

    let begin = Instant::now();
    for number in shuffled(cells - SHORT_SCAN_CELLS).take(SHORT_SCANS) {
        let mut seen = 0;
        for part in number / BUCKET_KEYS..=(number + SHORT_SCAN_CELLS - 1) / BUCKET_KEYS {
            let bounds = (bucket(part * BUCKET_KEYS), key(number), key(number + SHORT_SCAN_CELLS));
            seen += newest_of_each(&session, &scan, bounds).await?;
        }
        assert_eq!(seen, SHORT_SCAN_CELLS);
    }
    figures.short_scan = begin.elapsed() / SHORT_SCANS as u32;
    session.query_unpaged(format!("DROP KEYSPACE {keyspace}"), ()).await?;
    Ok(figures)
}

async fn prepare(session: &Session, text: String) -> Outcome<PreparedStatement> {
    let mut prepared = session.prepare(text).await?;
    prepared.set_consistency(Consistency::Quorum);
    prepared.set_page_size(1_000);
    Ok(prepared)
}

/// Reads a range of a bucket and counts its cells. All versions come, for there is no way to ask for the newest of each.
async fn newest_of_each(
    session: &Session,
    scan: &PreparedStatement,
    bounds: (Vec<u8>, Vec<u8>, Vec<u8>),
) -> Outcome<usize> {
    let rows = session.execute_iter(scan.clone(), bounds).await?.rows_stream::<(Vec<u8>, i64, Vec<u8>)>()?;
    let (mut cells, mut last) = (0, Vec::new());
    let mut rows = std::pin::pin!(rows);
    while let Some((key, _, value)) = rows.try_next().await? {
        assert_eq!(value.len(), VALUE_LEN);
        if key != last {
            cells += 1;
            last = key;
        }
    }
    Ok(cells)
}
