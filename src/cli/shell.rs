//! `atlas completions`, `atlas man`, `atlas version`.

use super::args::Cli;
use super::output::Reply;
use crate::schema::FORMAT_VERSION;
use crate::{Error, Result};
use clap::CommandFactory;
use serde_json::json;
use std::path::Path;

pub(crate) fn completions(shell: clap_complete::Shell) -> Reply {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "atlas", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    Reply::new(json!({"shell": shell.to_string(), "script": script}), script.clone(), script)
}

pub(crate) fn man(dir: Option<&Path>) -> Result<Reply> {
    if let Some(dir) = dir {
        let what = || format!("writing manual pages to {}", dir.display());
        std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
            .map_err(|error| Error::io(what(), error))?;
        let shown = dir.display().to_string();
        return Ok(Reply::new(json!({"dir": dir}), shown.clone(), format!("Manual pages are in {shown}")));
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut page)
        .map_err(|error| Error::io("writing the manual page", error))?;
    let page = String::from_utf8_lossy(&page).into_owned();
    Ok(Reply::new(json!({"page": page}), page.clone(), page))
}

pub(crate) fn version() -> Reply {
    let version = env!("CARGO_PKG_VERSION");
    let mut stores = vec!["memory"];
    if cfg!(feature = "rocksdb") {
        stores.push("rocksdb");
    }
    let table = format!("atlas {version}, stores: {}, format {FORMAT_VERSION}", stores.join(", "));
    Reply::new(json!({"version": version, "stores": stores, "format_version": FORMAT_VERSION}), version, table)
}
