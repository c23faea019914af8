//! Snapshots that a store hands over as streams, in files, and back.

use super::chunks::{self, ChunkFiles, PARALLEL};
use super::contents::{Contents, StreamPart};
use super::create::BackupStep;
use super::files::{Jobs, Meter};
use super::manifest::{Manifest, ManifestFile};
use super::restore::RestoreStep;
use crate::{Error, Result};
use atlas_kvs::{KvsError, OpenSnapshot, ResultStream, StreamSnapshot, is_part_name};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Writes every part of a snapshot into files in `directory`, several at once, and ends the snapshot.
pub(super) async fn copy_out(
    jobs: &Jobs,
    snapshot: Box<dyn OpenSnapshot>,
    directory: &Path,
    file_size: u64,
) -> Result<(Vec<ManifestFile>, Contents)> {
    let parts = snapshot.parts().to_vec();
    let names: BTreeSet<&str> = parts.iter().map(|part| part.name.as_str()).filter(|name| is_part_name(name)).collect();
    if parts.is_empty() || names.len() != parts.len() {
        return Err(Error::corrupt("the snapshot of the store", "the names of its parts can't be names of files"));
    }
    let estimate = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.estimated_bytes));
    let meter = jobs.meter(BackupStep::Copy.name(), estimate);
    // Made before the first is polled: a closure that lives as long as the stream would not be `Send` enough.
    let copies: Vec<BoxFuture<'_, Result<Vec<ManifestFile>>>> = parts
        .iter()
        .enumerate()
        .map(|(place, part)| {
            let content = snapshot.read(place).map_err(Error::from).boxed();
            let (directory, stem) = (directory.to_owned(), part.name.clone());
            chunks::write(jobs, content, ChunkFiles { directory, stem, preamble: b"", file_size }, Arc::clone(&meter))
                .boxed()
        })
        .collect();
    let copied: Vec<Vec<ManifestFile>> = stream::iter(copies).buffered(PARALLEL).try_collect().await?;
    // Only now it is known that all parts belong to one moment.
    snapshot.finish().await?;
    let parts = parts
        .into_iter()
        .zip(&copied)
        .map(|(part, files)| StreamPart { name: part.name, files: u32::try_from(files.len()).unwrap_or(u32::MAX) });
    let contents = Contents::Stream { parts: parts.collect() };
    Ok((copied.into_iter().flatten().collect(), contents))
}

/// Loads every part of a snapshot into a store that holds nothing: the first alone, then several at once.
pub(super) async fn load(
    store: &dyn StreamSnapshot,
    directory: &Path,
    manifest: &Manifest,
    parts: &[StreamPart],
    jobs: &Jobs,
) -> Result<()> {
    let meter = jobs.meter(RestoreStep::Copy.name(), manifest.store_files().map(|file| file.size).sum());
    let load_part = |part: &StreamPart| {
        let content = content(directory, manifest.chunks(&part.name, part.files), Arc::clone(&meter));
        let name = part.name.clone();
        async move { store.load(&name, content).await.map_err(Error::from) }.boxed()
    };
    if let Some(first) = parts.first() {
        load_part(first).await?;
    }
    let others: Vec<BoxFuture<'_, Result<()>>> = parts.iter().skip(1).map(load_part).collect();
    stream::iter(others).buffer_unordered(PARALLEL).try_collect::<()>().await?;
    Ok(store.finish_load().await?)
}

/// The bytes of a part, each file compared with the manifest where it ends.
fn content(directory: &Path, files: Vec<ManifestFile>, meter: Arc<Meter>) -> ResultStream<Bytes> {
    let directory = directory.to_owned();
    stream::iter(files)
        .flat_map(move |file| chunks::read(directory.join(&file.path), file, Arc::clone(&meter), chunks::send_all))
        .map_err(|error| KvsError::Backend {
            reason: format!("the backup can't be read: {error}"),
            source: Some(Box::new(error)),
        })
        .boxed()
}
