//! The manifest: what a backup is and what belongs to it, sealed with a checksum of its own and written last.
//!
//! ```text
//!   {"body": {"version": 1, "id": …, "files": [{"path": …, "size": …, "blake3": …}, …], …},
//!    "blake3": "<checksum of the text of the body>"}
//! ```
//!
//! The checksum is of the text, not of what it means, so that nothing has to be written the same way twice. A backup
//! without a manifest was never completed; one whose manifest does not match its checksum was changed afterwards.

use super::contents::{Contents, chunk_path};
use crate::ops::BackupInfo;
use crate::{Error, Result};
use atlas_kvs::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use uuid::Uuid;

/// The manifest's name in the directory of a backup.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The name of the file with the backup timestamp.
pub const BACKUP_TIMESTAMP_FILE: &str = "backup.timestamp";
/// The name of the file with the fast-forward timestamp.
pub const FAST_FORWARD_TIMESTAMP_FILE: &str = "fast-forward.timestamp";
/// The directory of the store's own files.
pub const FILES_DIRECTORY: &str = "files";

/// The greatest version of a manifest this program writes and reads. A backup of files has version 1, so that programs
/// that know no other method can read it; all others have version 2.
pub const MANIFEST_VERSION: u32 = 2;

/// Longest manifest read, in bytes: room for some 400,000 files.
pub(super) const SIZE_MAX: u64 = 64 << 20;

/// Longest path of a file, in bytes.
const PATH_LEN_MAX: usize = 1024;

/// The body of a manifest. One that was [decoded](Manifest::decode) is consistent in itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the manifest: see [`MANIFEST_VERSION`].
    pub version: u32,
    /// The backup's id: the name of its directory.
    pub id: String,
    /// Always `complete`: a manifest is written last.
    pub state: String,
    /// Version of the program that took the backup.
    pub tool_version: String,
    /// Adapter of the store it came from.
    pub store: String,
    /// Namespace it came from.
    pub namespace: String,
    /// Identity of the store it came from.
    pub store_id: Uuid,
    /// The state it restores: commits below this.
    pub backup_ts: Timestamp,
    /// Above every number in the copy: where time goes on after a restore.
    pub fast_forward_ts: Timestamp,
    /// When it was started, RFC 3339.
    pub started: String,
    /// When the last file was copied, RFC 3339.
    pub finished: String,
    /// How long the parts took.
    pub timings: Timings,
    /// The acquisition of the backup lock it was taken under.
    pub lock_id: Uuid,
    /// What the files mean; not written for [`Contents::Files`].
    #[serde(default, skip_serializing_if = "Contents::is_files")]
    pub contents: Contents,
    /// Every file of the backup but the manifest, in the order of paths.
    pub files: Vec<ManifestFile>,
    /// Sums over the files.
    pub totals: Totals,
}

/// How long the parts of a backup took, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Until the backup lock was held and nothing was being deleted.
    pub lock_ms: u64,
    /// Until every commit below the backup timestamp was applied.
    pub settle_ms: u64,
    /// The store's own snapshot.
    pub snapshot_ms: u64,
    /// Copying the snapshot into the repository.
    pub copy_ms: u64,
    /// All of it.
    pub total_ms: u64,
}

/// A file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Path below the backup's directory, with `/` between the parts; never upwards.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// Checksum of the content, 64 hexadecimal digits.
    pub blake3: String,
}

impl ManifestFile {
    /// The path in the store's own directory; `None` for files that belong to the backup only.
    pub fn store_path(&self) -> Option<&str> {
        self.path.strip_prefix(FILES_DIRECTORY)?.strip_prefix('/')
    }
}

/// Sums over the files of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Totals {
    /// The sums over `files`; `None` if they are greater than a number can be.
    pub fn of(files: &[ManifestFile]) -> Option<Totals> {
        let bytes = files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size))?;
        Some(Totals { files: files.len() as u64, bytes })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    body: Box<RawValue>,
    blake3: String,
}

impl Manifest {
    /// The content of the manifest's file.
    pub fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_string_pretty(self).expect("a manifest is plain data");
        let checksum = blake3::hash(body.as_bytes()).to_hex();
        format!("{{\n\"body\": {body},\n\"blake3\": \"{checksum}\"\n}}\n").into_bytes()
    }

    /// Reads the content of a manifest's file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming `place` for anything that is not exactly what was written, and [`Error::Refused`]
    /// for a manifest of a newer version of this program.
    pub fn decode(place: &str, content: &[u8]) -> Result<Manifest> {
        let damaged = |reason: String| Error::corrupt(place, reason);
        let sealed: Sealed =
            serde_json::from_slice(content).map_err(|error| damaged(format!("it is no manifest: {error}")))?;
        let body = sealed.body.get();
        // As text: the writer uses small letters, and another spelling is another manifest.
        if blake3::hash(body.as_bytes()).to_hex().as_str() != sealed.blake3 {
            return Err(damaged("its content does not match its checksum: it was changed or cut off".to_owned()));
        }
        check_version(place, body)?;
        let manifest: Manifest =
            serde_json::from_str(body).map_err(|error| damaged(format!("it can't be read: {error}")))?;
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// The files that make up the store itself.
    pub fn store_files(&self) -> impl Iterator<Item = &ManifestFile> {
        self.files.iter().filter(|file| file.store_path().is_some())
    }

    /// The backup as it is listed.
    pub fn info(&self) -> BackupInfo {
        BackupInfo {
            id: self.id.clone(),
            state: self.state.clone(),
            backup_ts: Some(self.backup_ts),
            fast_forward_ts: Some(self.fast_forward_ts),
            started: self.started.clone(),
            took_ms: self.timings.total_ms,
            snapshot_ms: self.timings.snapshot_ms,
            bytes: self.totals.bytes,
            files: self.totals.files,
            store: self.store.clone(),
            namespace: self.namespace.clone(),
            method: self.contents.method().to_owned(),
        }
    }

    /// The version that a manifest with these contents has.
    pub(super) fn version_of(contents: &Contents) -> u32 {
        if contents.is_files() { 1 } else { MANIFEST_VERSION }
    }

    /// The files that a stream was cut into, in their order.
    pub(super) fn chunks(&self, stem: &str, count: u32) -> Vec<ManifestFile> {
        let find = |path: String| self.files.iter().find(|file| file.path == path).cloned();
        (0..count).filter_map(|number| find(chunk_path(stem, number))).collect()
    }

    /// A checksum proves that the text is what was written, not that a sound program wrote it.
    fn check(&self) -> std::result::Result<(), String> {
        if self.state != super::repository::COMPLETE {
            return Err(format!("its state is '{}'", self.state));
        }
        if self.version != Manifest::version_of(&self.contents) {
            return Err(format!(
                "a manifest of version {} can't be of method {}",
                self.version,
                self.contents.method()
            ));
        }
        if !self.backup_ts.is_data() || !self.fast_forward_ts.is_data() || self.backup_ts >= self.fast_forward_ts {
            return Err(format!(
                "backup timestamp {} is not below fast-forward timestamp {}",
                self.backup_ts, self.fast_forward_ts
            ));
        }
        let mut paths = BTreeSet::new();
        for file in &self.files {
            check_path(&file.path)?;
            if file.blake3.len() != 64 || !file.blake3.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(format!("the checksum of '{}' is none", file.path));
            }
            if !paths.insert(file.path.as_str()) {
                return Err(format!("'{}' is listed twice", file.path));
            }
        }
        self.contents.check(&self.files)?;
        // A file can't be a directory too.
        let inside_a_file = |path: &&str| path.match_indices('/').any(|(at, _)| paths.contains(&path[..at]));
        if let Some(path) = paths.iter().find(|path| inside_a_file(path)) {
            return Err(format!("'{path}' lies inside another file"));
        }
        for file in [BACKUP_TIMESTAMP_FILE, FAST_FORWARD_TIMESTAMP_FILE] {
            if !paths.contains(file) {
                return Err(format!("'{file}' is missing from the list of files"));
            }
        }
        match Totals::of(&self.files) {
            Some(totals) if totals == self.totals => Ok(()),
            _ => Err("its totals are not the sums over its files".to_owned()),
        }
    }
}

/// The version is looked at first: a newer manifest may differ in everything else.
fn check_version(place: &str, body: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } =
        serde_json::from_str(body).map_err(|error| Error::corrupt(place, format!("it has no version: {error}")))?;
    match version {
        1..=MANIFEST_VERSION => Ok(()),
        0 => Err(Error::corrupt(place, "there is no version 0")),
        newer => Err(Error::refused(
            format!("{place} was written by a newer program: version {newer}, this one reads {MANIFEST_VERSION}"),
            "use the version of atlas that took the backup, or a later one",
        )),
    }
}

/// A path that stays below the directory it is joined to, on every system.
fn check_path(path: &str) -> std::result::Result<(), String> {
    let sound = path.len() <= PATH_LEN_MAX
        && !path.contains(['\\', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && (path == BACKUP_TIMESTAMP_FILE
            || path == FAST_FORWARD_TIMESTAMP_FILE
            || path.strip_prefix(FILES_DIRECTORY).is_some_and(|rest| rest.starts_with('/')));
    if sound { Ok(()) } else { Err(format!("'{}' is no path of a backup's file", path.escape_default())) }
}

#[cfg(test)]
mod tests {
    use super::super::contents::{PortableTable, StreamPart};
    use super::*;
    use crate::exit;
    use crate::schema::TableSpec;
    use atlas_kvs::TableRef;
    use proptest::prelude::*;

    fn file(path: &str, size: u64) -> ManifestFile {
        ManifestFile { path: path.to_owned(), size, blake3: blake3::hash(path.as_bytes()).to_hex().to_string() }
    }

    fn manifest() -> Manifest {
        let files = vec![
            file("backup.timestamp", 3),
            file("fast-forward.timestamp", 3),
            file("files/000007.sst", 1234),
            file("files/deep/er/CURRENT", 16),
        ];
        Manifest {
            version: 1,
            contents: Contents::Files,
            id: "nightly".to_owned(),
            state: "complete".to_owned(),
            tool_version: "0.1.0".to_owned(),
            store: "rocksdb".to_owned(),
            namespace: "default".to_owned(),
            store_id: Uuid::from_u128(7),
            backup_ts: Timestamp::saturating(10),
            fast_forward_ts: Timestamp::saturating(20),
            started: "2026-01-02T03:04:05.678Z".to_owned(),
            finished: "2026-01-02T03:04:06Z".to_owned(),
            timings: Timings { total_ms: 900, ..Timings::default() },
            lock_id: Uuid::from_u128(8),
            totals: Totals::of(&files).expect("small numbers"),
            files,
        }
    }

    /// Seals any body, as somebody would who wants to be believed.
    fn sealed(body: &str) -> Vec<u8> {
        format!("{{\"body\": {body}, \"blake3\": \"{}\"}}", blake3::hash(body.as_bytes()).to_hex()).into_bytes()
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(Manifest::decode("manifest", &manifest().encode()).expect("it was written"), manifest());
    }

    fn portable() -> Manifest {
        let mut manifest = manifest();
        manifest.version = 2;
        let table = |name: &str, cells, files| PortableTable {
            table: TableRef::new(name).expect("a name"),
            spec: TableSpec::default(),
            cells,
            files,
        };
        manifest.contents = Contents::Portable { tables: vec![table("a", 3, 2), table("b", 0, 0)] };
        manifest.files[2].path = "files/00000.000000".to_owned();
        manifest.files[3].path = "files/00000.000001".to_owned();
        manifest
    }

    #[test]
    fn a_manifest_of_files_is_written_as_ever() {
        let text = String::from_utf8(manifest().encode()).expect("it is text");
        assert!(text.contains("\"version\": 1") && !text.contains("contents"), "{text}");
    }

    #[test]
    fn the_list_of_files_is_what_the_method_makes_of_it() {
        let read = |manifest: &Manifest| Manifest::decode("manifest", &manifest.encode());
        assert_eq!(read(&portable()).expect("it was written"), portable());
        let stream = |parts: &[(&str, u32)]| Contents::Stream {
            parts: parts.iter().map(|(name, files)| StreamPart { name: (*name).to_owned(), files: *files }).collect(),
        };
        let table = |name: &str, files| PortableTable {
            table: TableRef::new(name).expect("a name"),
            spec: TableSpec::default(),
            cells: 1,
            files,
        };
        let nodes = |nodes: &[&str]| Contents::Nodes {
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            tables: Vec::new(),
        };
        for (what, contents) in [
            ("a file more", Contents::Portable { tables: vec![table("a", 1)] }),
            ("a file less", Contents::Portable { tables: vec![table("a", 3)] }),
            ("absurdly many", Contents::Portable { tables: vec![table("a", u32::MAX)] }),
            ("twice", Contents::Portable { tables: vec![table("a", 2), table("a", 0)] }),
            ("internal", Contents::Portable { tables: vec![table("_transactions", 2)] }),
            ("no parts", stream(&[])),
            ("a part twice", stream(&[("00000", 2), ("00000", 2)])),
            ("a path", stream(&[("../x", 0), ("00000", 2)])),
            ("no nodes", nodes(&[])),
            ("another node", nodes(&["10.0.0.1"])),
            ("files, but version 2", Contents::Files),
        ] {
            let error = read(&Manifest { contents, ..portable() }).expect_err(what);
            assert_eq!(error.exit_code(), exit::DAMAGED, "{what}: {error}");
        }
        read(&Manifest { contents: stream(&[("00000", 2), ("empty", 0)]), ..portable() }).expect("it is sound");
        let mut of_nodes = Manifest { contents: nodes(&["10.0.0.1", "::1"]), ..portable() };
        of_nodes.files[2].path = "files/10.0.0.1/t-1/na-1-big-Data.db".to_owned();
        of_nodes.files[3].path = "files/::1/x".to_owned();
        read(&of_nodes).expect("it is sound");
        let old = Manifest { version: 1, ..portable() };
        assert_eq!(read(&old).expect_err("an old program would take it for files").exit_code(), exit::DAMAGED);
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_damage_even_with_a_right_checksum() {
        type Change = fn(&mut Manifest);
        let changes: [(&str, Change); 12] = [
            ("upwards", |m| m.files[2].path = "files/../../etc/passwd".to_owned()),
            ("absolute", |m| m.files[2].path = "/etc/passwd".to_owned()),
            ("elsewhere", |m| m.files[2].path = "other/file".to_owned()),
            ("backslash", |m| m.files[2].path = "files/..\\x".to_owned()),
            ("directory itself", |m| m.files[2].path = "files/".to_owned()),
            ("twice", |m| m.files[2].path = "files/deep/er/CURRENT".to_owned()),
            ("inside a file", |m| m.files[2].path = "files/deep".to_owned()),
            ("checksum", |m| m.files[2].blake3 = "abc".to_owned()),
            ("totals", |m| m.totals.bytes += 1),
            ("overflow", |m| m.files[2].size = u64::MAX),
            ("timestamps", |m| m.fast_forward_ts = m.backup_ts),
            ("state", |m| m.state = "incomplete".to_owned()),
        ];
        for (name, change) in changes {
            let mut manifest = manifest();
            change(&mut manifest);
            let error = Manifest::decode("manifest", &manifest.encode()).expect_err(name);
            assert_eq!(error.exit_code(), exit::DAMAGED, "{name}: {error}");
        }
    }

    #[test]
    fn a_newer_version_is_refused_and_not_called_damaged() {
        let error = Manifest::decode("manifest", &sealed("{\"version\": 3, \"anything\": []}")).expect_err("newer");
        assert_eq!(error.exit_code(), exit::REFUSED);
        for body in ["{\"version\": 0}", "{}", "[]", "7", "{\"version\": -1}", "{\"version\": 1}"] {
            let error = Manifest::decode("manifest", &sealed(body)).expect_err(body);
            assert_eq!(error.exit_code(), exit::DAMAGED, "{body}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn changed_bytes_are_refused_or_mean_the_same(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
            cut in proptest::option::weighted(0.2, any::<proptest::sample::Index>()),
        ) {
            let mut content = manifest().encode();
            for (at, byte) in changes {
                let at = at.index(content.len());
                content[at] = byte;
            }
            if let Some(cut) = cut {
                content.truncate(cut.index(content.len()));
            }
            if let Ok(read) = Manifest::decode("manifest", &content) {
                prop_assert_eq!(read, manifest());
            }
        }

        #[test]
        fn inserted_and_removed_bytes_are_refused_or_mean_the_same(
            at in any::<proptest::sample::Index>(),
            insert in proptest::collection::vec(any::<u8>(), 0..6),
            remove in 0usize..6,
        ) {
            let mut content = manifest().encode();
            let at = at.index(content.len());
            let end = (at + remove).min(content.len());
            content.splice(at..end, insert);
            if let Ok(read) = Manifest::decode("manifest", &content) {
                prop_assert_eq!(read, manifest());
            }
        }

        #[test]
        fn sealed_nonsense_never_panics(body in "[\\[\\]{}\":,0-9a-z ]{0,40}") {
            let _ = Manifest::decode("manifest", &sealed(&body));
        }
    }
}
