//! Files written past the system's page cache, where the file system can.
//!
//! What a backup writes is not read again soon, and what a restore writes is synced at once. In the cache it would drive out
//! what the running store needs. And it would need memory that the machine does not have at hand: under a virtual machine
//! whose host takes back what lies unused, filling such memory takes ten times as long as filling other memory does, and
//! longer than the disk takes.
//!
//! ```text
//!   bytes ── buffer ── the disk, whenever the buffer is full
//!               └───── the rest, which is no whole block, goes through the cache ── sync
//! ```

use super::files::{create, io};
use crate::Result;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fs::File;
use std::io::{Error, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// How much is written at a time, in bytes.
const BUFFER_SIZE: usize = 1 << 20;

/// What addresses, offsets and lengths are multiples of: the largest that disks ask for.
const ALIGNMENT: usize = 4096;

/// A file under way.
pub(super) struct DirectFile {
    file: File,
    path: PathBuf,
    buffer: Buffer,
    /// How much of the buffer is to be written.
    filled: usize,
    is_direct: bool,
}

impl DirectFile {
    /// Opens a file for writing, for its owner only. `may_exist`: what is there goes away.
    pub(super) fn create(path: &Path, may_exist: bool) -> Result<DirectFile> {
        Ok(DirectFile::of(create(path, may_exist)?, path))
    }

    /// Writes into an empty file that is open for writing.
    pub(super) fn of(file: File, path: &Path) -> DirectFile {
        // Not when it is opened: a file system that refuses it there has made the file all the same.
        let is_direct = set_direct(&file, true).is_ok();
        DirectFile { file, path: path.to_owned(), buffer: Buffer::new(), filled: 0, is_direct }
    }

    /// Where the next bytes go, never empty. Tell with [`advance`](Self::advance) how many they were.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes()[self.filled..]
    }

    /// The first `len` bytes of [`room`](Self::room) are written now.
    pub(super) fn advance(&mut self, len: usize) -> Result<()> {
        self.filled += len;
        debug_assert!(self.filled <= BUFFER_SIZE, "there is no more room");
        if self.filled == BUFFER_SIZE { self.write_out() } else { Ok(()) }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.room();
            let len = bytes.len().min(room.len());
            room[..len].copy_from_slice(&bytes[..len]);
            self.advance(len)?;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    /// Makes all of it durable; the file's name is not yet.
    pub(super) fn finish(mut self) -> Result<()> {
        if !self.filled.is_multiple_of(ALIGNMENT) {
            self.use_cache().map_err(io("writing", &self.path))?;
        }
        self.write_out()?;
        self.file.sync_all().map_err(io("syncing", &self.path))
    }

    fn write_out(&mut self) -> Result<()> {
        let mut done = 0;
        while done < self.filled {
            match self.file.write(&self.buffer.bytes()[done..self.filled]) {
                Ok(0) => return Err(io("writing", &self.path)(ErrorKind::WriteZero.into())),
                Ok(len) => done += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                // A disk with larger blocks, or a write that ended within one.
                Err(error) if error.kind() == ErrorKind::InvalidInput && self.is_direct => {
                    self.use_cache().map_err(io("writing", &self.path))?;
                }
                Err(error) => return Err(io("writing", &self.path)(error)),
            }
        }
        self.filled = 0;
        Ok(())
    }

    fn use_cache(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.is_direct) { set_direct(&self.file, false) } else { Ok(()) }
    }
}

fn set_direct(file: &File, direct: bool) -> std::io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    fcntl_setfl(file, flags).map_err(Error::from)
}

/// Memory that begins where disks ask for it.
struct Buffer {
    // Invariant: never grows, so that it stays where it is.
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Buffer {
        let memory = vec![0; BUFFER_SIZE + ALIGNMENT];
        let start = memory.as_ptr().addr().next_multiple_of(ALIGNMENT) - memory.as_ptr().addr();
        Buffer { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BUFFER_SIZE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_in_pieces_of_any_size_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        for (number, len) in
            [0, 1, 4096, 5000, BUFFER_SIZE, BUFFER_SIZE + 1, 3 * BUFFER_SIZE - 4096].into_iter().enumerate()
        {
            let content: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            for piece in [1000, 300_000, 2 * BUFFER_SIZE] {
                let path = dir.path().join(format!("{number}-{piece}"));
                let mut file = DirectFile::create(&path, false).expect("it is new");
                content.chunks(piece).try_for_each(|piece| file.write(piece)).expect("there is space");
                file.finish().expect("there is space");
                assert!(std::fs::read(&path).expect("it is there") == content, "{len} bytes, {piece} at a time");
            }
        }
    }

    #[test]
    fn a_disk_that_refuses_goes_through_the_cache() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let mut file = DirectFile::create(&path, false).expect("it is new");
        // Memory that is not where a disk asks for it.
        file.buffer.start += 1;
        let content = vec![7; BUFFER_SIZE + 10];
        file.write(&content).expect("it takes the other way");
        file.finish().expect("there is space");
        assert!(std::fs::read(&path).expect("it is there") == content);
    }

    #[test]
    fn whole_buffers_suit_the_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut file = DirectFile::create(&dir.path().join("file"), false).expect("it is new");
        let was_direct = file.is_direct;
        file.write(&vec![7; BUFFER_SIZE]).expect("there is space");
        assert_eq!(file.is_direct, was_direct, "it was not refused");
    }
}
