//! Reads the configuration: which file, which block of it, and what the environment and flags say instead.

use super::layers::{Document, Given, Known, Layers, RUNTIME, Resolved, Source, nearest, show};
use super::{AtlasConfig, RuntimeConfig, Secret};
use crate::{Error, Result};
use serde::Serialize;
use serde_yaml::{Mapping, Value};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A configuration file with every key, its default and an explanation: `config/atlas.yml`.
pub const COMMENTED: &str = include_str!("../../config/atlas.yml");

/// No configuration is this long, and something else that is given by mistake may be endless.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Where to look for settings.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file; `None`: `$ATLAS_CONFIG`, `./config/atlas.yml`, `$XDG_CONFIG_HOME/atlas/atlas.yml`,
    /// `/etc/atlas/atlas.yml`, the first that there is, or no file at all.
    pub file: Option<PathBuf>,
    /// Path of the block in the file, as `/atlasdb`; `None`: `/atlasdb`, or `/atlas` where that is missing.
    pub root: Option<String>,
    /// The environment.
    pub environment: Environment,
    /// Read the named file alone: variables in it are put in place, but none goes before it, and no file is looked for.
    pub alone: bool,
    /// Settings as `path.of.key=value`.
    pub set: Vec<String>,
    /// Settings by flags of their own: path, value, name of the flag.
    pub flags: Vec<(&'static str, String, &'static str)>,
}

impl Sources {
    /// One file and nothing else: neither the environment nor flags change what it says.
    pub fn only_file(file: impl Into<PathBuf>, root: Option<String>) -> Sources {
        let environment = Environment::of_process();
        Sources { file: Some(file.into()), root, environment, alone: true, ..Sources::default() }
    }
}

/// Environment variables, as they were at one moment.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Those of this process.
    pub fn of_process() -> Environment {
        Environment(std::env::vars_os().collect())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(OsStr::new(name)).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Environment {
        Environment(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// A configuration, and how it came about.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is read once, when a store is opened.
    pub config: AtlasConfig,
    /// What may change while it runs.
    pub runtime: RuntimeConfig,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Every setting with its origin, in order of paths.
    pub settings: Vec<Setting>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Path of the key, as `atlasdb.keyValueService.dataDir`.
    pub key: String,
    /// The value that holds.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "from")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line of the key, where it can be told.
        line: Option<usize>,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// `--set`.
    Set,
    /// A flag of its own.
    Flag {
        /// Its name.
        flag: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Origin::File { path, line: None } => write!(f, "{}", path.display()),
            Origin::Environment { variable } => write!(f, "environment {variable}"),
            Origin::Set => f.write_str("--set"),
            Origin::Flag { flag } => f.write_str(flag),
        }
    }
}

/// Reads the configuration.
///
/// # Errors
/// [`Error::Config`] with the place (file, line and key; or variable; or flag) and, for an unknown key, the nearest
/// key that there is.
pub fn load(sources: &Sources) -> Result<Loaded> {
    let mut layers = Layers::default();
    let document = find_file(sources)?.map(|path| read(&path)).transpose()?;
    if let Some(document) = &document {
        layers.add(file_layer(document, sources)?)?;
    }
    if !sources.alone {
        layers.add(environment_layer(&sources.environment)?)?;
    }
    layers.add(set_layer(&sources.set)?)?;
    layers.add(flag_layer(&sources.flags))?;
    let Resolved { config, runtime, settings } = layers.resolve()?;
    let settings = settings
        .into_iter()
        .map(|(key, value, given)| Setting {
            value: if is_secret(&key) && !show(&value).is_empty() { Secret::HIDDEN.to_owned() } else { show(&value) },
            key: match key.strip_prefix(RUNTIME) {
                Some(rest) => format!("atlasdb-runtime{rest}"),
                None => format!("atlasdb.{key}"),
            },
            origin: given.map_or(Origin::Default, |given| given.origin()),
        })
        .collect();
    Ok(Loaded { config, runtime, file: document.map(|document| document.path), settings })
}

/// Whether the value of a key may be shown.
fn is_secret(key: &str) -> bool {
    key == "keyValueService.password"
}

fn find_file(sources: &Sources) -> Result<Option<PathBuf>> {
    if sources.alone {
        return Ok(sources.file.clone());
    }
    // A file that is named must be there; one that is only looked for need not.
    if let Some(named) = sources.file.clone().or_else(|| sources.environment.path("ATLAS_CONFIG")) {
        return Ok(Some(named));
    }
    let user = sources
        .environment
        .path("XDG_CONFIG_HOME")
        .or_else(|| sources.environment.path("HOME").map(|home| home.join(".config")));
    let places = [
        Some(PathBuf::from("./config/atlas.yml")),
        user.map(|dir| dir.join("atlas/atlas.yml")),
        Some(PathBuf::from("/etc/atlas/atlas.yml")),
    ];
    Ok(places.into_iter().flatten().find(|path| path.exists()))
}

fn read(path: &Path) -> Result<Document> {
    let wrong = |reason: String| Error::Config { place: path.display().to_string(), reason };
    let mut text = String::new();
    std::fs::File::open(path).and_then(|file| file.take(FILE_LEN_MAX + 1).read_to_string(&mut text)).map_err(
        |error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                wrong(format!("there is no such file; `atlas config init {}` writes one", path.display()))
            }
            _ => wrong(format!("the configuration can't be read: {error}")),
        },
    )?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(wrong(format!("a configuration has at most {FILE_LEN_MAX} bytes")));
    }
    Ok(Document { path: path.to_owned(), text: text.into() })
}

fn file_layer(document: &Document, sources: &Sources) -> Result<Vec<Given>> {
    let path = document.path.display();
    let mut tree: Value = serde_yaml::from_str(&document.text).map_err(|error| Error::Config {
        place: match error.location() {
            Some(location) => format!("{path}, line {}", location.line()),
            None => path.to_string(),
        },
        reason: format!("this is not YAML that can be used: {error}"),
    })?;
    tree.apply_merge().map_err(|error| Error::Config { place: path.to_string(), reason: error.to_string() })?;
    if tree.is_null() && sources.root.is_none() {
        return Ok(Vec::new());
    }
    let Blocks { root, runtime } = choose_blocks(document, &tree, sources.root.as_deref())?;
    let mut layer = Vec::new();
    for (keys, prefix) in [(Some(root), None), (runtime, Some(RUNTIME.to_owned()))] {
        let Some(keys) = keys else { continue };
        let block = keys.iter().try_fold(&tree, |block, key| block.get(key.as_str()));
        if let Some(block) = block.filter(|block| !block.is_null()) {
            let mut reader = BlockReader { document, environment: &sources.environment, layer: &mut layer };
            reader.read(&mut keys.clone(), &mut prefix.into_iter().collect(), block)?;
        }
    }
    Ok(layer)
}

struct Blocks {
    root: Vec<String>,
    runtime: Option<Vec<String>>,
}

/// Which block of the file is ours. Where nobody says, the whole file is ours, and what we don't know in it is wrong;
/// with a root given, the rest of the file belongs to the application.
fn choose_blocks(document: &Document, tree: &Value, root: Option<&str>) -> Result<Blocks> {
    let wrong = |reason: String| Error::Config { place: document.path.display().to_string(), reason };
    let Value::Mapping(top) = tree else {
        return Err(wrong("a configuration starts with the block 'atlasdb:'".to_owned()));
    };
    if let Some(root) = root {
        let keys: Vec<String> = root.split('/').filter(|key| !key.is_empty()).map(str::to_owned).collect();
        if keys.iter().try_fold(tree, |block, key| block.get(key.as_str())).is_none() {
            return Err(wrong(format!("there is no block '{root}' (--config-root); the file has {}", list_keys(top))));
        }
        let runtime = keys.split_last().map(|(name, above)| {
            let mut keys = above.to_vec();
            keys.push(format!("{name}-runtime"));
            keys
        });
        return Ok(Blocks { root: keys, runtime });
    }
    let name = if top.contains_key("atlasdb") { "atlasdb" } else { "atlas" };
    let runtime = format!("{name}-runtime");
    for key in top.keys() {
        let key = show(key);
        if key == name || key == runtime {
            continue;
        }
        let near = nearest(&key, ["atlasdb", "atlasdb-runtime"].into_iter());
        let advice = near.map_or_else(
            || "the blocks are 'atlasdb' and 'atlasdb-runtime'; --config-root names another".to_owned(),
            |near| format!("did you mean '{near}'?"),
        );
        let given = Given {
            path: vec![key.clone()],
            value: Value::Null,
            is_text: false,
            source: Source::File(document.clone(), vec![key]),
        };
        return Err(given.error(format!("unknown block; {advice}")));
    }
    Ok(Blocks { root: vec![name.to_owned()], runtime: Some(vec![runtime]) })
}

fn list_keys(block: &Mapping) -> String {
    let keys: Vec<String> = block.keys().map(|key| format!("'{}'", show(key))).collect();
    if keys.is_empty() { "no keys".to_owned() } else { keys.join(", ") }
}

struct BlockReader<'a> {
    document: &'a Document,
    environment: &'a Environment,
    layer: &'a mut Vec<Given>,
}

impl BlockReader<'_> {
    /// Collects every single value under `value`. `keys` are those of the file, `path` the same in camel case from the
    /// block down.
    fn read(&mut self, keys: &mut Vec<String>, path: &mut Vec<String>, value: &Value) -> Result<()> {
        let Value::Mapping(block) = value else {
            let source = Source::File(self.document.clone(), keys.clone());
            let mut given = Given { path: path.clone(), value: value.clone(), is_text: false, source };
            if path.is_empty() || *path == [RUNTIME] {
                return Err(Error::Config {
                    place: format!("{}, {}", self.document.path.display(), keys.join(".")),
                    reason: "this must be a block of keys".to_owned(),
                });
            }
            if let Some(text) = value.as_str().filter(|text| text.contains('$')) {
                let text = interpolate(text, self.environment).map_err(|reason| given.error(reason))?;
                given.value = Value::String(text);
                given.is_text = true;
            }
            self.layer.push(given);
            return Ok(());
        };
        for (key, value) in block {
            let key = show(key);
            path.push(camel_case(&key));
            keys.push(key);
            self.read(keys, path, value)?;
            path.pop();
            keys.pop();
        }
        Ok(())
    }
}

/// Puts variables in place of `${NAME}` and `${NAME:-otherwise}`. `$${` stands for `${` itself.
fn interpolate(text: &str, environment: &Environment) -> std::result::Result<String, String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            result.push_str(before);
            result.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        result.push_str(&rest[..at]);
        let end = rest[at..].find('}').ok_or_else(|| format!("'{}' has no closing '}}'", &rest[at..]))? + at;
        let inside = &rest[at + 2..end];
        let (name, otherwise) = inside.split_once(":-").map_or((inside, None), |(name, other)| (name, Some(other)));
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("'${{{inside}}}' names no variable; write '$${{' for the characters themselves"));
        }
        match environment.0.get(OsStr::new(name)) {
            // As in a shell, `:-` covers the empty value too.
            Some(value) if !(value.is_empty() && otherwise.is_some()) => {
                result.push_str(value.to_str().ok_or_else(|| format!("the variable {name} is not UTF-8"))?);
            }
            _ => {
                result.push_str(otherwise.ok_or_else(|| {
                    format!("the variable {name} is not set; set it, or write '${{{name}:-otherwise}}'")
                })?)
            }
        }
        rest = &rest[end + 1..];
    }
    result.push_str(rest);
    Ok(result)
}

fn camel_case(key: &str) -> String {
    let mut words = key.split('_');
    let mut name = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut chars = word.chars();
        name.extend(chars.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(chars.as_str());
    }
    name
}

fn environment_layer(environment: &Environment) -> Result<Vec<Given>> {
    let known = Known::of_every_store();
    let mut layer = Vec::new();
    for (name, value) in &environment.0 {
        let Some((name, path)) = name.to_str().and_then(|name| Some((name, name.strip_prefix("ATLAS__")?))) else {
            continue;
        };
        let Some(value) = value.to_str() else {
            let place = format!("environment variable {name}");
            return Err(Error::Config { place, reason: "the value is not UTF-8".to_owned() });
        };
        let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
        let segments: Vec<&str> = path.split("__").collect();
        let same = |path: &&str| path.split('.').map(plain).eq(segments.iter().map(|segment| plain(segment)));
        let path = match known.paths().find(same) {
            Some(path) => path.split('.').map(str::to_owned).collect(),
            None => segments.iter().map(|segment| camel_case(&segment.to_lowercase())).collect(),
        };
        let source = Source::Environment(name.to_owned());
        layer.push(Given { path, value: value.into(), is_text: true, source });
    }
    Ok(layer)
}

fn set_layer(set: &[String]) -> Result<Vec<Given>> {
    let mut layer = Vec::new();
    for setting in set {
        let Some((key, value)) = setting.split_once('=') else {
            let place = format!("--set {setting}");
            return Err(Error::Config { place, reason: "write KEY=VALUE, as namespace=orders".to_owned() });
        };
        let mut path: Vec<String> = key.trim().split('.').map(camel_case).collect();
        if path.len() > 1 && (path[0] == "atlasdb" || path[0] == "atlas") {
            path.remove(0);
        } else if path[0] == "atlasdb-runtime" || path[0] == "atlas-runtime" {
            path[0] = RUNTIME.to_owned();
        }
        layer.push(Given { path, value: value.into(), is_text: true, source: Source::Set });
    }
    Ok(layer)
}

fn flag_layer(flags: &[(&'static str, String, &'static str)]) -> Vec<Given> {
    flags
        .iter()
        .map(|(path, value, flag)| Given {
            path: path.split('.').map(str::to_owned).collect(),
            value: value.as_str().into(),
            is_text: true,
            source: Source::Flag(flag),
        })
        .collect()
}

#[cfg(test)]
mod tests;
