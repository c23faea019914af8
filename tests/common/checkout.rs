//! Where the files of the repository are.

use std::path::PathBuf;

/// The directory of the crate whose tests run. Asked for when they run: one target directory may serve several checkouts,
/// and a program that was built for one of them is run for another.
pub fn directory() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests").into()
}

/// A file of the repository, as text for command lines.
pub fn file(name: &str) -> String {
    directory().join(name).to_str().expect("a path of plain characters").to_owned()
}
