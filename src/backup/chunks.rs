//! Streams of bytes in files: written while they come in, cut where a file is large enough, and read back in order.
//!
//! Memory is bounded by a few chunks in flight, whatever a stream holds. Every file is hashed on its way to the disk,
//! and again on its way back.

use super::contents::{chunk_name, chunk_path};
use super::create::{self, BackupStep};
use super::direct::DirectFile;
use super::files::{self, Jobs, Meter, io};
use super::manifest::ManifestFile;
use super::restore::{self, RestoreStep};
use crate::{Error, Result};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// A file ends with the first chunk that makes it as large as this, in bytes.
pub(super) const FILE_SIZE: u64 = 64 << 20;

/// How many streams are written or read at a time.
pub(super) const PARALLEL: usize = 4;

/// How many chunks may wait for the disk, or for the store.
const QUEUED: usize = 4;

/// How much is read at a time, in bytes.
const READ_SIZE: usize = 256 << 10;

/// Where a stream is written.
pub(super) struct ChunkFiles {
    /// The directory of the files.
    pub(super) directory: PathBuf,
    /// What their names begin with.
    pub(super) stem: String,
    /// What each file begins with.
    pub(super) preamble: &'static [u8],
    /// A file ends with the first chunk that makes it as large as this.
    pub(super) file_size: u64,
}

/// Writes a stream. Files are cut between chunks only; a stream of no chunks makes no file.
pub(super) async fn write(
    jobs: &Jobs,
    mut content: BoxStream<'_, Result<Bytes>>,
    into: ChunkFiles,
    meter: Arc<Meter>,
) -> Result<Vec<ManifestFile>> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(QUEUED);
    let writing = jobs.run(move || {
        let mut writer = Writer { into, meter, done: Vec::new(), open: None };
        while let Some(chunk) = receiver.blocking_recv() {
            writer.write(&chunk)?;
        }
        writer.finish()
    });
    let pumping = async move {
        while let Some(chunk) = content.next().await {
            // A writer that gave up says why itself.
            if sender.send(chunk?).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let pumping = async {
        tokio::select! {
            biased;
            () = jobs.cancelled() => Err(Error::Interrupted),
            pumped = pumping => pumped,
        }
    };
    let (pumped, written) = tokio::join!(pumping, writing);
    // Without the end of the stream, what was written is not all of it.
    pumped.and(written)
}

/// Runs a stream on a task of its own, so that several streams keep several processors busy. Dropping what is answered ends the
/// task.
pub(super) fn on_a_task<T: Send + 'static>(mut stream: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let running = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(item) = stream.next().await {
            if sender.send(item).await.is_err() {
                break;
            }
        }
    }));
    async_stream::stream! {
        while let Some(item) = receiver.recv().await {
            yield item;
        }
        // A task that broke off has not given everything.
        if let Err(error) = files::joined(running.await.map(Ok)) {
            yield Err(error);
        }
    }
    .boxed()
}

struct Writer {
    into: ChunkFiles,
    meter: Arc<Meter>,
    done: Vec<ManifestFile>,
    open: Option<OpenFile>,
}

struct OpenFile {
    file: DirectFile,
    hasher: blake3::Hasher,
    size: u64,
}

impl OpenFile {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }
}

impl Writer {
    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        if self.open.is_none() {
            self.open = Some(self.next_file()?);
        }
        let open = self.open.as_mut().expect("it was just opened");
        open.write(chunk)?;
        self.meter.add(chunk.len() as u64)?;
        if open.size >= self.into.file_size { self.close() } else { Ok(()) }
    }

    fn next_file(&self) -> Result<OpenFile> {
        create::reached(BackupStep::CopyFile)?;
        let path = self.into.directory.join(chunk_name(&self.into.stem, self.number()));
        let file = DirectFile::create(&path, false)?;
        let mut open = OpenFile { file, hasher: blake3::Hasher::new(), size: 0 };
        open.write(self.into.preamble)?;
        Ok(open)
    }

    fn number(&self) -> u32 {
        u32::try_from(self.done.len()).unwrap_or(u32::MAX)
    }

    fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        open.file.finish()?;
        self.done.push(ManifestFile {
            path: chunk_path(&self.into.stem, self.number()),
            size: open.size,
            blake3: open.hasher.finalize().to_hex().to_string(),
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<ManifestFile>> {
        self.close()?;
        Ok(self.done)
    }
}

/// Reads a file of a backup on a thread of its own: `parse` reads it and sends what it finds. The stream ends with an
/// error if the file is not what the manifest says; what came before is not proven until the stream has ended.
pub(super) fn read<T: Send + 'static>(
    path: PathBuf,
    file: ManifestFile,
    meter: Arc<Meter>,
    parse: impl FnOnce(&mut HashedFile, &dyn Fn(T) -> Result<()>) -> Result<()> + Send + 'static,
) -> BoxStream<'static, Result<T>> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<T>(QUEUED);
    let reading = tokio::task::spawn_blocking(move || {
        read_here(path, &file, meter, |source| {
            // Nobody wants it any more: the other side knows.
            parse(source, &|item| sender.blocking_send(item).map_err(|_| Error::Interrupted))
        })
    });
    async_stream::stream! {
        while let Some(item) = receiver.recv().await {
            yield Ok(item);
        }
        match reading.await {
            Ok(Ok(())) => (),
            Ok(Err(error)) => yield Err(error),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => yield Err(Error::Interrupted),
        }
    }
    .boxed()
}

/// Reads a file of a backup on the thread that asks.
///
/// # Errors
/// Those of `parse`, and one if the file is not what the manifest says: then what was parsed is not proven.
pub(super) fn read_here(
    path: PathBuf,
    file: &ManifestFile,
    meter: Arc<Meter>,
    parse: impl FnOnce(&mut HashedFile) -> Result<()>,
) -> Result<()> {
    restore::reached(RestoreStep::CopyFile)?;
    let source = File::open(&path).map_err(io("opening", &path))?;
    let mut source = HashedFile { source, path, hasher: blake3::Hasher::new(), size: 0, meter };
    parse(&mut source)?;
    source.check(file)
}

/// Sends the content of a file as it is.
pub(super) fn send_all(source: &mut HashedFile, send: &dyn Fn(Bytes) -> Result<()>) -> Result<()> {
    loop {
        let mut chunk = vec![0; READ_SIZE];
        let len = source.read_some(&mut chunk)?;
        if len == 0 {
            return Ok(());
        }
        chunk.truncate(len);
        send(chunk.into())?;
    }
}

/// A file that is hashed while it is read.
pub(super) struct HashedFile {
    source: File,
    path: PathBuf,
    hasher: blake3::Hasher,
    size: u64,
    meter: Arc<Meter>,
}

impl HashedFile {
    /// Reads as much as there is at the moment; nothing at the end of the file.
    pub(super) fn read_some(&mut self, into: &mut [u8]) -> Result<usize> {
        let len = files::read_some(&mut self.source, &self.path, into)?;
        self.hasher.update(&into[..len]);
        self.size += len as u64;
        self.meter.add(len as u64)?;
        Ok(len)
    }

    /// Reads what is left, and compares all of it with the manifest.
    fn check(mut self, file: &ManifestFile) -> Result<()> {
        let mut rest = vec![0; READ_SIZE];
        while self.read_some(&mut rest)? > 0 {}
        if self.size == file.size && self.hasher.finalize().to_hex().as_str() == file.blake3 {
            return Ok(());
        }
        Err(Error::corrupt(self.path.display().to_string(), "it changed since the backup was verified"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::no_progress;
    use futures::TryStreamExt;
    use std::path::Path;

    async fn written(directory: &Path, chunks: &[&[u8]], file_size: u64) -> Vec<ManifestFile> {
        let jobs = Jobs::owned(no_progress());
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let into = ChunkFiles { directory: directory.to_owned(), stem: "part".to_owned(), preamble: b"<", file_size };
        let meter = jobs.meter("copy", 0);
        write(&jobs, futures::stream::iter(chunks).boxed(), into, meter).await.expect("it can be written")
    }

    #[tokio::test]
    async fn a_stream_is_cut_between_chunks_and_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = written(dir.path(), &[b"abc", b"defg", b"h", b""], 7).await;
        let sizes: Vec<_> = files.iter().map(|file| (file.path.as_str(), file.size)).collect();
        assert_eq!(sizes, [("files/part.000000", 8), ("files/part.000001", 2)]);
        assert_eq!(std::fs::read(dir.path().join("part.000001")).expect("it is there"), b"<h");
        assert_eq!(written(dir.path(), &[], 7).await, [], "no chunk, no file");
    }

    #[tokio::test]
    async fn a_file_that_changed_is_told_at_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = written(dir.path(), &[b"abc"], 7).await.remove(0);
        let path = dir.path().join("part.000000");
        let read = async || {
            let jobs = Jobs::owned(no_progress());
            let stream = super::read(path.clone(), file.clone(), jobs.meter("copy", 0), send_all);
            stream.try_collect::<Vec<Bytes>>().await
        };
        assert_eq!(read().await.expect("it is sound").concat(), b"<abc");
        for damage in [&b"<abd"[..], b"<ab", b"<abcd", b""] {
            std::fs::write(&path, damage).expect("it can be written");
            assert!(matches!(read().await, Err(Error::Corrupt { .. })), "{damage:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_no_stream() {
        let dir = tempfile::tempdir().expect("a directory");
        let jobs = Jobs::owned(no_progress());
        let broken = futures::stream::iter([Ok(Bytes::from_static(b"abc")), Err(Error::Interrupted)]);
        let into =
            ChunkFiles { directory: dir.path().to_owned(), stem: "part".to_owned(), preamble: b"", file_size: 7 };
        let answer = write(&jobs, broken.boxed(), into, jobs.meter("copy", 0)).await;
        assert!(matches!(answer, Err(Error::Interrupted)));
    }

    #[tokio::test]
    async fn a_task_that_breaks_off_is_no_end() {
        let whole = futures::stream::iter([Ok(1), Ok(2), Ok(3)]).boxed();
        assert_eq!(on_a_task(whole).try_collect::<Vec<i32>>().await.expect("it is whole"), [1, 2, 3]);
        let panics = futures::stream::iter([1, 2]).map(|item| if item == 1 { Ok(item) } else { panic!("as it must") });
        let taken = tokio::spawn(on_a_task(panics.boxed()).try_collect::<Vec<i32>>()).await;
        assert!(taken.expect_err("it is not whole").is_panic());
    }
}
