//! What the files of a backup are: the store's own, a stream of its own, cells for any store, or what each node gave.
//!
//! | method | files | restores into |
//! | --- | --- | --- |
//! | `files` | the store's own files, as they lay in its directory | a directory of the same store |
//! | `stream` | parts that the store handed over, each cut into files | an empty store of the same kind |
//! | `portable` | cells as a transaction at the backup timestamp read them | any empty store |
//! | `nodes` | of each node of a cluster what a command collected there | an empty cluster of as many nodes |

use super::manifest::{FILES_DIRECTORY, ManifestFile};
use crate::schema::TableSpec;
use atlas_kvs::{TableKind, TableRef, is_part_name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Longest name of a node, in bytes.
const NODE_LEN_MAX: usize = 200;

/// How the data of a backup were taken, and what its files mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "method")]
pub enum Contents {
    /// The store's own files.
    #[default]
    Files,
    /// Parts of the store's own making.
    Stream {
        /// The parts, in the store's order.
        parts: Vec<StreamPart>,
    },
    /// Cells as a reader at the backup timestamp sees them.
    Portable {
        /// The tables of applications.
        tables: Vec<PortableTable>,
    },
    /// What each node of a cluster gave.
    Nodes {
        /// The nodes; the files of each lie in a directory of its name.
        nodes: Vec<String>,
        /// The tables of the store, those of the layer included.
        tables: Vec<NodeTable>,
    },
}

/// A part of a stream, in files that are read one behind the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPart {
    /// Its name, given by the store.
    pub name: String,
    /// Number of its files.
    pub files: u32,
}

/// A table of a portable backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortableTable {
    /// Its name.
    pub table: TableRef,
    /// What is promised for it.
    pub spec: TableSpec,
    /// Number of its cells.
    pub cells: u64,
    /// Number of its files.
    pub files: u32,
}

/// A table of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTable {
    /// Its name.
    pub table: TableRef,
    /// Its kind.
    pub kind: TableKind,
    /// Its metadata, in hexadecimal digits.
    pub metadata: String,
    /// What the tools of the store called its parts, in the store's order.
    pub parts: Vec<String>,
    /// True if it was not empty before the first node was copied, so that every quorum of copies has something of it.
    pub filled: bool,
}

impl Contents {
    /// The name of the method.
    pub fn method(&self) -> &'static str {
        match self {
            Contents::Files => "files",
            Contents::Stream { .. } => "stream",
            Contents::Portable { .. } => "portable",
            Contents::Nodes { .. } => "nodes",
        }
    }

    pub(super) fn is_files(&self) -> bool {
        *self == Contents::Files
    }

    /// Whether the list of files is what the method makes of it.
    pub(super) fn check(&self, files: &[ManifestFile]) -> Result<(), String> {
        let found: BTreeSet<&str> = files.iter().filter_map(ManifestFile::store_path).collect();
        match self {
            Contents::Files => Ok(()),
            Contents::Stream { parts } => {
                if let Some(part) = parts.iter().find(|part| !is_part_name(&part.name)) {
                    return Err(format!("'{}' can't name a part", part.name.escape_default()));
                }
                let names: BTreeSet<&str> = parts.iter().map(|part| part.name.as_str()).collect();
                if parts.is_empty() || names.len() != parts.len() {
                    return Err("its parts are none, or have the same name".to_owned());
                }
                expect(&found, parts.iter().map(|part| (part.name.clone(), part.files)))
            }
            Contents::Portable { tables } => {
                if let Some(table) = tables.iter().find(|table| table.table.is_internal()) {
                    return Err(format!("'{}' is no table of an application", table.table));
                }
                let names: BTreeSet<&TableRef> = tables.iter().map(|table| &table.table).collect();
                if names.len() != tables.len() {
                    return Err("a table is in it twice".to_owned());
                }
                expect(&found, tables.iter().enumerate().map(|(place, table)| (table_stem(place), table.files)))
            }
            Contents::Nodes { nodes, tables } => {
                if let Some(node) = nodes.iter().find(|node| !is_node_name(node)) {
                    return Err(format!("'{}' can't name a node", node.escape_default()));
                }
                // They become names of directories in the operator's commands.
                let parts = || tables.iter().flat_map(|table| &table.parts);
                if let Some(part) = parts().find(|part| !is_table_part(part)) {
                    return Err(format!("'{}' can't name a part of a table", part.escape_default()));
                }
                if let Some(table) = tables.iter().find(|table| hex::decode(&table.metadata).is_err()) {
                    return Err(format!("the metadata of table '{}' can't be read", table.table));
                }
                let known: BTreeSet<&str> = nodes.iter().map(String::as_str).collect();
                let given: BTreeSet<&str> = found.iter().filter_map(|path| Some(path.split_once('/')?.0)).collect();
                if nodes.is_empty() || known.len() != nodes.len() || known != given {
                    return Err("its files are not those of its nodes".to_owned());
                }
                Ok(())
            }
        }
    }
}

/// Whether a table of the store below may have this name.
fn is_table_part(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether a node may have this name, which is that of a directory too.
pub(super) fn is_node_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    !name.is_empty() && name.len() <= NODE_LEN_MAX && !name.starts_with('.') && name.bytes().all(plain)
}

/// What the names of a table's files begin with: its place in the list, because names of tables differ in ways that
/// names of files may not.
pub(super) fn table_stem(place: usize) -> String {
    format!("{place:05}")
}

/// The name of one of the files that a stream was cut into.
pub(super) fn chunk_name(stem: &str, number: u32) -> String {
    format!("{stem}.{number:06}")
}

/// The path of such a file below the directory of the backup.
pub(super) fn chunk_path(stem: &str, number: u32) -> String {
    format!("{FILES_DIRECTORY}/{}", chunk_name(stem, number))
}

fn expect(found: &BTreeSet<&str>, stems: impl Iterator<Item = (String, u32)>) -> Result<(), String> {
    let mut expected = 0usize;
    for (stem, files) in stems {
        // Ends at the first that is missing, so a number that is too great costs nothing.
        for number in 0..files {
            if !found.contains(chunk_name(&stem, number).as_str()) {
                return Err(format!("'{}' is missing from the list of files", chunk_path(&stem, number)));
            }
            expected += 1;
        }
    }
    if expected == found.len() { Ok(()) } else { Err("it lists files of no table or part".to_owned()) }
}
