//! `atlas config`.

use super::Context;
use super::args::ConfigCommand;
use super::output::{Reply, columns};
use crate::config::{COMMENTED, Loaded, Origin};
use crate::{Error, Result};
use serde_json::json;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

pub(crate) fn run(command: ConfigCommand, context: &Context) -> Result<Reply> {
    match command {
        ConfigCommand::Show { origin: true } => Ok(show_origins(context.config()?)),
        ConfigCommand::Show { origin: false } => Ok(show(context.config()?)),
        ConfigCommand::Check => {
            let loaded = context.config()?;
            // As `serve` does.
            crate::server::check_addresses(&loaded.config.server)?;
            Ok(check(loaded))
        }
        ConfigCommand::Init { path } => init(&path),
    }
}

fn show(loaded: &Loaded) -> Reply {
    let data = json!({"atlasdb": loaded.config, "atlasdb-runtime": loaded.runtime});
    let text = serde_yaml::to_string(&data).expect("a configuration is plain data");
    Reply::new(data, text.clone(), text)
}

fn show_origins(loaded: &Loaded) -> Reply {
    let plain = loaded
        .settings
        .iter()
        .map(|setting| format!("{}\t{}\t{}", setting.key, setting.value, setting.origin))
        .collect::<Vec<_>>()
        .join("\n");
    let rows =
        loaded.settings.iter().map(|setting| [setting.key.clone(), setting.value.clone(), setting.origin.to_string()]);
    let table = columns(["KEY", "VALUE", "FROM"], rows);
    Reply::new(json!({"file": loaded.file, "settings": loaded.settings}), plain, table)
}

fn check(loaded: &Loaded) -> Reply {
    let set = loaded.settings.iter().filter(|setting| setting.origin != Origin::Default).count();
    let file = match &loaded.file {
        Some(file) => file.display().to_string(),
        None => "no file; the defaults".to_owned(),
    };
    let table = format!("The configuration is right: {file}; {set} of {} keys are set", loaded.settings.len());
    Reply::new(json!({"file": loaded.file, "keys_set": set}), "ok", table)
}

fn init(path: &Path) -> Result<Reply> {
    let what = || format!("writing {}", path.display());
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .map_err(|error| Error::io(format!("making the directory {}", parent.display()), error))?;
    }
    let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::refused(
                format!("{} exists already and is left as it is", path.display()),
                "name another path, or remove the file first",
            ));
        }
        result => result.map_err(|error| Error::io(what(), error))?,
    };
    file.write_all(COMMENTED.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| Error::io(what(), error))?;
    let shown = path.display().to_string();
    Ok(Reply::new(json!({"file": path}), shown.clone(), format!("Written: {shown}")))
}
