//! Settings laid over each other: defaults below, then the file, the environment, `--set`, and flags on top.
//!
//! A configuration is kept as a flat map of paths (`keyValueService.dataDir`) until it is complete, because each value
//! has its own origin, and an error has to name it.

use super::place::line_of;
use super::{AtlasConfig, KvsConfig, Origin, RuntimeConfig};
use crate::{Error, Result};
use serde::Deserialize;
use serde_yaml::{Mapping, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The block of [`RuntimeConfig`] in paths. No key of [`AtlasConfig`] has this name.
pub(super) const RUNTIME: &str = "runtime";

const STORE: &str = "keyValueService";
const STORE_TYPE: &str = "keyValueService.type";

/// A configuration file as far as messages need it.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    pub(super) text: Arc<str>,
}

/// A value somebody gave, and where.
#[derive(Clone, Debug)]
pub(super) struct Given {
    /// Path of the key from the block down, in camel case.
    pub(super) path: Vec<String>,
    pub(super) value: Value,
    /// Whether the value was written as bare text, so that `123` may be meant as a number or as a name.
    pub(super) is_text: bool,
    pub(super) source: Source,
}

/// Where a value was given.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// In a file, under these keys as written there.
    File(Document, Vec<String>),
    /// In an environment variable.
    Environment(String),
    /// By `--set`.
    Set,
    /// By a flag.
    Flag(&'static str),
}

impl Given {
    pub(super) fn key(&self) -> String {
        self.path.join(".")
    }

    pub(super) fn origin(&self) -> Origin {
        match &self.source {
            Source::File(document, keys) => {
                Origin::File { path: document.path.clone(), line: line_of(&document.text, keys) }
            }
            Source::Environment(variable) => Origin::Environment { variable: variable.clone() },
            Source::Set => Origin::Set,
            Source::Flag(flag) => Origin::Flag { flag: (*flag).to_owned() },
        }
    }

    /// An error about the first `depth` keys of the path.
    fn error_at(&self, depth: usize, reason: impl Into<String>) -> Error {
        let place = match &self.source {
            Source::File(document, keys) => {
                // The file's own keys start with the block, which the path leaves out.
                let keys = &keys[..keys.len() - (self.path.len() - depth)];
                let line = line_of(&document.text, keys).map_or_else(String::new, |line| format!(", line {line}"));
                format!("{}{line}, {}", document.path.display(), keys.join("."))
            }
            Source::Environment(variable) => format!("environment variable {variable}"),
            Source::Set => format!("--set {}", self.path[..depth].join(".")),
            Source::Flag(flag) => (*flag).to_owned(),
        };
        Error::Config { place, reason: reason.into() }
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        self.error_at(self.path.len(), reason)
    }
}

/// A complete configuration.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) config: AtlasConfig,
    pub(super) runtime: RuntimeConfig,
    /// Every path with its value, in order, and what was given for it.
    pub(super) settings: Vec<(String, Value, Option<Given>)>,
}

/// All layers, merged.
#[derive(Debug, Default)]
pub(super) struct Layers {
    given: BTreeMap<String, Given>,
}

impl Layers {
    /// Lays `layer` over what is there.
    pub(super) fn add(&mut self, mut layer: Vec<Given>) -> Result<()> {
        // The type first: what lower layers say about another kind of store does not count any more.
        layer.sort_by_key(|given| given.key() != STORE_TYPE);
        let mut seen: BTreeMap<String, ()> = BTreeMap::new();
        for given in layer {
            let key = given.key();
            // The same `--set` twice is the last one's; a file that says one thing under two spellings is a mistake.
            if seen.insert(key.clone(), ()).is_some() && matches!(given.source, Source::File(..)) {
                return Err(given.error("this key is given twice, in two spellings"));
            }
            if key == STORE_TYPE && self.store_type()? != text_of(&given.value) {
                self.given.retain(|key, _| !key.starts_with(&format!("{STORE}.")));
            }
            self.given.insert(key, given);
        }
        Ok(())
    }

    fn store_type(&self) -> Result<String> {
        Ok(self.given.get(STORE_TYPE).map_or_else(|| "rocksdb".to_owned(), |given| text_of(&given.value)))
    }

    /// The configuration they make together.
    pub(super) fn resolve(mut self) -> Result<Resolved> {
        let known = match Known::of_store(&self.store_type()?) {
            Ok(known) => known,
            Err(reason) => return Err(self.given[STORE_TYPE].error(reason)),
        };
        self.given.retain(|key, given| !(given.value.is_null() && known.is_block(key)));
        let mut settings = known.settings.clone();
        for given in self.given.values() {
            known.check_path(given)?;
            settings.insert(given.key(), known.fit(given)?);
        }
        let (config, runtime) = build(&settings)
            .map_err(|error| Error::Config { place: "the configuration".to_owned(), reason: error.to_string() })?;
        if let Some((path, reason)) = config.find_nonsense() {
            let place = || Error::Config { place: format!("the default of {path}"), reason: reason.clone() };
            return Err(self.given.get(path).map_or_else(place, |given| given.error(reason.clone())));
        }
        let all = settings.into_iter().map(|(key, value)| (key.clone(), value, self.given.remove(&key))).collect();
        Ok(Resolved { config, runtime, settings: all })
    }
}

/// Every setting there is, with its default.
pub(super) struct Known {
    settings: BTreeMap<String, Value>,
}

impl Known {
    fn of_store(store_type: &str) -> std::result::Result<Known, String> {
        let mut block = Mapping::new();
        block.insert("type".into(), store_type.into());
        let key_value_service: KvsConfig =
            serde_yaml::from_value(Value::Mapping(block)).map_err(|error| error.to_string())?;
        let config = AtlasConfig { key_value_service, ..AtlasConfig::default() };
        let mut settings = BTreeMap::new();
        flatten(&mut Vec::new(), &to_value(&config), &mut settings);
        flatten(&mut vec![RUNTIME.to_owned()], &to_value(&RuntimeConfig::default()), &mut settings);
        Ok(Known { settings })
    }

    /// The settings of every kind of store at once.
    pub(super) fn of_every_store() -> Known {
        let mut all = Known { settings: BTreeMap::new() };
        for store_type in ["rocksdb", "postgres", "cassandra", "memory"] {
            all.settings.extend(Known::of_store(store_type).expect("these stores are known").settings);
        }
        all
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.settings.keys().map(String::as_str)
    }

    fn is_block(&self, path: &str) -> bool {
        self.settings.keys().any(|key| key.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    }

    fn check_path(&self, given: &Given) -> Result<()> {
        for depth in 1..=given.path.len() {
            let path = given.path[..depth].join(".");
            if self.settings.contains_key(&path) {
                let reason = format!("'{}' is a single value and has no keys below it", given.path[depth - 1]);
                return if depth == given.path.len() { Ok(()) } else { Err(given.error_at(depth, reason)) };
            }
            if !self.is_block(&path) {
                return Err(given.error_at(depth, self.unknown(&given.path[..depth], &given.source)));
            }
        }
        let keys = self.keys_in(&given.path.join(".")).join(", ");
        Err(given.error(format!("this is a block with the keys {keys}, not a single value")))
    }

    /// The keys directly in a block; the empty path is the block of everything.
    fn keys_in(&self, block: &str) -> Vec<String> {
        let below = |key: &str| match block {
            "" => Some(key.to_owned()),
            _ => key.strip_prefix(block)?.strip_prefix('.').map(str::to_owned),
        };
        let mut keys: Vec<String> = self
            .settings
            .keys()
            .filter_map(|key| below(key))
            .filter_map(|rest| rest.split('.').next().map(str::to_owned))
            .filter(|key| !(block.is_empty() && key == RUNTIME))
            .collect();
        keys.dedup();
        keys
    }

    fn unknown(&self, path: &[String], source: &Source) -> String {
        let (key, block) = path.split_last().expect("a path has a key");
        let neighbours = self.keys_in(&block.join("."));
        let spell = |path: &str| match source {
            Source::Environment(_) => variable_of(path),
            _ => path.to_owned(),
        };
        let in_block = |key: &str| match block {
            [] => key.to_owned(),
            _ if matches!(source, Source::File(..)) => key.to_owned(),
            _ => format!("{}.{key}", block.join(".")),
        };
        if let Some(near) = nearest(key, neighbours.iter().map(String::as_str)) {
            return format!("unknown key; did you mean '{}'?", spell(&in_block(near)));
        }
        let last = |path: &&str| nearest(key, path.rsplit('.').take(1)).is_some();
        if let Some(elsewhere) = self.paths().find(last) {
            return format!("unknown key here; did you mean '{}'?", spell(elsewhere));
        }
        let of_store = match block {
            [name] if name == STORE => " of this type of store",
            _ => "",
        };
        format!("unknown key; the keys here{of_store} are {}", neighbours.join(", "))
    }

    /// The value in the type that its setting has.
    fn fit(&self, given: &Given) -> Result<Value> {
        let as_read = given.is_text.then(|| serde_yaml::from_str(&text_of(&given.value)).ok()).flatten();
        let mut reason = String::new();
        for candidate in [Some(given.value.clone()), as_read].into_iter().flatten() {
            // All other settings have their defaults here, so that whatever is wrong is wrong with this one.
            let mut settings = self.settings.clone();
            settings.insert(given.key(), candidate.clone());
            match build(&settings) {
                Ok(_) => return Ok(candidate),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(given.error(reason))
    }
}

/// The nearest of `names`, if any is near enough to be what was meant.
pub(super) fn nearest<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| name.replace(['_', '-'], "").to_lowercase();
    names
        .map(|name| (strsim::normalized_damerau_levenshtein(&plain(key), &plain(name)), name))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// `keyValueService.dataDir` as `ATLAS__KEY_VALUE_SERVICE__DATA_DIR`.
pub(super) fn variable_of(path: &str) -> String {
    let mut name = "ATLAS__".to_owned();
    for c in path.chars() {
        match c {
            '.' => name.push_str("__"),
            '-' => name.push('_'),
            _ if c.is_ascii_uppercase() => name.extend(['_', c]),
            _ => name.push(c.to_ascii_uppercase()),
        }
    }
    name
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| show(value), str::to_owned)
}

/// A single value as people write it.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        _ => serde_yaml::to_string(value).unwrap_or_default().trim_end().to_owned(),
    }
}

fn to_value<T: serde::Serialize>(config: &T) -> Value {
    serde_yaml::to_value(config).expect("a configuration is plain data")
}

fn flatten(path: &mut Vec<String>, value: &Value, into: &mut BTreeMap<String, Value>) {
    let Value::Mapping(block) = value else {
        into.insert(path.join("."), value.clone());
        return;
    };
    for (key, value) in block {
        path.push(text_of(key));
        flatten(path, value, into);
        path.pop();
    }
}

fn build(settings: &BTreeMap<String, Value>) -> std::result::Result<(AtlasConfig, RuntimeConfig), serde_yaml::Error> {
    let mut tree = Mapping::new();
    for (path, value) in settings {
        let mut block = &mut tree;
        let mut keys = path.split('.').peekable();
        while let Some(key) = keys.next() {
            if keys.peek().is_none() {
                block.insert(key.into(), value.clone());
                break;
            }
            let below = block.entry(key.into()).or_insert_with(|| Value::Mapping(Mapping::new()));
            block = below.as_mapping_mut().expect("check_path keeps blocks and values apart");
        }
    }
    let runtime = tree.remove(RUNTIME).unwrap_or(Value::Mapping(Mapping::new()));
    Ok((AtlasConfig::deserialize(Value::Mapping(tree))?, RuntimeConfig::deserialize(runtime)?))
}
