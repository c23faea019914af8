//! How the code is built: what a reader may rely on without looking.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The modules of the crate from the bottom to the top. A module uses those of lower layers, and none of its own.
///
/// The server speaks for whatever implements `ops::Operations`, so it lies below the store that serves itself by it.
const LAYERS: [&[&str]; 8] = [
    &["error", "clock", "rule", "planted"],
    &["config", "schema"],
    &["ops", "timestamp", "lock"],
    &["transaction"],
    &["typed", "backup", "punch", "server"],
    &["sweep"],
    &["registry", "doctor", "atlas"],
    &["demo", "workload", "cli"],
];

/// Uses within a layer that are meant: the open store and what only it does.
const WITHIN_A_LAYER: [(&str, &str); 6] = [
    ("atlas", "registry"),
    ("atlas", "doctor"),
    ("doctor", "atlas"),
    ("demo", "cli"),
    ("cli", "demo"),
    ("cli", "workload"),
];

/// What the crate gives out under its own name.
const REEXPORTS: [(&str, &str); 4] = [("Atlas", "atlas"), ("Error", "error"), ("Result", "error"), ("exit", "error")];

/// Crates of stores: the rest of the program knows their contract only.
const STORES: [&str; 2] = ["atlas_kvs_rocksdb", "atlas_kvs_memory"];

/// Longer files are likely to have two subjects.
const LINES_ADVISED: usize = 800;

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The code without tests and comments.
    fn code(&self) -> String {
        let tests = self.text.find("#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        let lines = self.text[..tests].lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn is_test(&self) -> bool {
        let name = self.path.file_stem().and_then(|name| name.to_str());
        matches!(name, Some("tests" | "testing")) || self.path.iter().any(|part| part == "tests")
    }

    /// The module of the crate it belongs to.
    fn module(&self) -> Option<String> {
        let inside = self.path.strip_prefix(root().join("src")).ok()?;
        let first = inside.iter().next()?.to_str()?;
        Some(first.trim_end_matches(".rs").to_owned())
    }
}

fn root() -> &'static Path {
    // As it is when they run: one target directory may serve several checkouts.
    static ROOT: LazyLock<PathBuf> =
        LazyLock::new(|| std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests").into());
    &ROOT
}

/// The files below a directory whose names end with `extension`.
fn sources(directory: &str, extension: &str) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        let entries = std::fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
        for entry in entries {
            let path = entry?.path();
            // What a build has left beside its manifest is not ours.
            if path.is_dir() {
                if !path.ends_with("target") {
                    open.push(path);
                }
            } else if path.to_str().is_some_and(|path| path.ends_with(extension)) {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                found.push(Source { path, text });
            }
        }
    }
    anyhow::ensure!(!found.is_empty(), "{directory} has no files");
    Ok(found)
}

fn rust_sources() -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for directory in ["src", "checker", "kvs-adapters", "tests", "examples", "benches"] {
        found.extend(sources(directory, ".rs")?);
    }
    Ok(found)
}

/// Fails with everything that is wrong, not only with the first.
fn expect_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The names that follow `crate::` in a text, of groups as well: `crate::{Error, lock::Held}`.
fn uses_of_crate(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (_, rest) in code.match_indices("crate::").map(|(at, found)| (at, &code[at + found.len()..])) {
        match rest.strip_prefix('{') {
            None => names.push(first_word(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (at, character) in group.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ if start && character.is_alphanumeric() => {
                            names.push(first_word(&group[at..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

#[test]
fn no_module_reaches_upward() -> Result<()> {
    let reexports = BTreeMap::from(REEXPORTS);
    let mut wrong = Vec::new();
    for source in sources("src", ".rs")? {
        let module = source.module().context("it lies in src")?;
        if source.is_test() || matches!(&*module, "lib" | "main") {
            continue;
        }
        let Some(layer) = layer_of(&module) else {
            wrong.push(format!("{module}: the module has no layer; give it one in this test"));
            continue;
        };
        for name in uses_of_crate(&source.code()) {
            let used = reexports.get(&*name).map_or(&*name, |module| module);
            let Some(used_layer) = layer_of(used).filter(|_| used != module) else { continue };
            if used_layer >= layer && !WITHIN_A_LAYER.contains(&(&*module, used)) {
                wrong.push(format!("{}: {module} uses {used}, which is not below it", source.path.display()));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    expect_none(wrong);
    Ok(())
}

#[test]
fn every_module_of_the_crate_has_a_layer() -> Result<()> {
    let library = std::fs::read_to_string(root().join("src/lib.rs"))?;
    let modules = library.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    let homeless = modules.map(|rest| rest.trim_end_matches(';')).filter(|module| layer_of(module).is_none());
    expect_none(homeless.map(str::to_owned).collect());
    Ok(())
}

#[test]
fn only_the_registry_knows_which_stores_there_are() -> Result<()> {
    let mut wrong = Vec::new();
    for source in sources("src", ".rs")? {
        if source.path.ends_with("src/registry.rs") || source.is_test() {
            continue;
        }
        let code = source.code();
        let named = STORES.into_iter().chain(["rocksdb::"]).filter(|store| code.contains(&format!(" {store}")));
        wrong.extend(named.map(|store| format!("{}: names {store}", source.path.display())));
    }
    expect_none(wrong);
    Ok(())
}

#[test]
fn a_store_knows_the_contract_and_nothing_else_of_atlas() -> Result<()> {
    let mut wrong = Vec::new();
    for manifest in sources("kvs-adapters", "Cargo.toml")? {
        let dependencies = manifest.text.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("[dev-dependencies]").next().unwrap_or_default();
        let others = dependencies.lines().filter(|line| line.starts_with("atlas") && !line.starts_with("atlas-kvs."));
        wrong.extend(others.map(|line| format!("{}: {line}", manifest.path.display())));
    }
    expect_none(wrong);
    Ok(())
}

/// A checker that shares code with what it checks shares its mistakes.
#[test]
fn the_checker_of_histories_knows_nothing_of_atlas() -> Result<()> {
    let manifest = std::fs::read_to_string(root().join("checker/Cargo.toml"))?;
    let (_, dependencies) = manifest.split_once("[dependencies]").context("it has dependencies")?;
    let others = dependencies.lines().filter(|line| line.starts_with("atlas") || line.contains("path"));
    expect_none(others.map(|line| format!("checker/Cargo.toml: {line}")).collect());
    Ok(())
}

#[test]
fn nothing_is_left_to_be_done_later() -> Result<()> {
    // Put together here, or this file would be the first to break the rule.
    let marks = [concat!("to", "do!"), concat!("unimple", "mented!"), concat!("FIX", "ME"), concat!("TO", "DO")];
    let mut wrong = Vec::new();
    for source in rust_sources()? {
        for (number, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                wrong.push(format!("{}:{}: {}", source.path.display(), number + 1, line.trim()));
            }
        }
    }
    expect_none(wrong);
    Ok(())
}

#[test]
fn no_path_of_one_machine_is_written_down() -> Result<()> {
    let homes = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];
    let mut files = rust_sources()?;
    for directory in ["scripts", "config", ".ci"] {
        if root().join(directory).is_dir() {
            files.extend(sources(directory, "")?);
        }
    }
    let mut wrong = Vec::new();
    for source in files {
        for (number, line) in source.text.lines().enumerate() {
            let named = homes.iter().any(|home| {
                // The beginning of a path, not a part of one.
                line.match_indices(home).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '}'))
            });
            if named {
                wrong.push(format!("{}:{}: {}", source.path.display(), number + 1, line.trim()));
            }
        }
    }
    expect_none(wrong);
    Ok(())
}

#[test]
fn every_file_says_what_it_is_about() -> Result<()> {
    let mut wrong = Vec::new();
    for source in rust_sources()? {
        // Tests that lie beside their module are introduced by it.
        if !source.text.starts_with("//!") && !source.path.ends_with("tests.rs") {
            wrong.push(format!("{}: begins without a module doc", source.path.display()));
        }
    }
    expect_none(wrong);
    Ok(())
}

#[test]
fn long_files_are_named() -> Result<()> {
    for source in rust_sources()? {
        let lines = source.text.lines().count();
        if lines > LINES_ADVISED {
            println!("advice: {} has {lines} lines; is it one subject?", source.path.display());
        }
    }
    Ok(())
}

/// `scripts/test` selects test programs by name over the whole workspace.
#[test]
fn test_programs_have_names_of_their_own() -> Result<()> {
    let mut directories = vec![root().join("tests"), root().join("checker/tests")];
    for entry in std::fs::read_dir(root().join("kvs-adapters"))? {
        directories.push(entry?.path().join("tests"));
    }
    let mut seen: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut wrong = Vec::new();
    for directory in directories.into_iter().filter(|directory| directory.is_dir()) {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            // A directory without a main is what programs share.
            if path.is_dir() && !path.join("main.rs").exists() {
                continue;
            }
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if let Some(other) = seen.insert(name, path.clone()) {
                wrong.push(format!("{} and {}", other.display(), path.display()));
            }
        }
    }
    expect_none(wrong);
    Ok(())
}

#[test]
fn scripts_stop_at_the_first_error() -> Result<()> {
    let mut wrong = Vec::new();
    for source in sources("scripts", "")?.into_iter().chain(sources(".ci", "")?) {
        let is_script = source.text.lines().next().is_some_and(|line| line.starts_with("#!") && line.ends_with("bash"));
        if is_script && !source.text.contains("\nset -euo pipefail\n") {
            wrong.push(source.path.display().to_string());
        }
    }
    expect_none(wrong);
    Ok(())
}

/// The names that follow `prefix` in a text, each once, in the order of their first mention.
fn names_after(text: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, found) in text.match_indices(prefix) {
        let name = first_word(&text[at + found.len()..]);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The text from a line that begins an item to the line that ends it.
fn item<'a>(text: &'a str, begins: &str, ends: &str) -> Result<&'a str> {
    let (_, rest) = text.split_once(begins).with_context(|| format!("there is no '{begins}'"))?;
    let (item, _) = rest.split_once(ends).with_context(|| format!("'{begins}' does not end"))?;
    Ok(item)
}

/// The names of an enum's variants.
fn variants(text: &str, begins: &str) -> Result<Vec<String>> {
    let lines = item(text, begins, "\n}")?.lines().map(str::trim);
    let named = lines.filter(|line| line.starts_with(|first: char| first.is_uppercase()));
    Ok(named.map(first_word).collect())
}

/// A model whose steps are others than those of the code proves nothing about it.
#[test]
fn the_model_takes_the_steps_of_the_code() -> Result<()> {
    let code = std::fs::read_to_string(root().join("src/transaction/step.rs"))?;
    let model = std::fs::read_to_string(root().join("tests/model/src/rules.rs"))?;
    let known = variants(&code, "pub enum CommitStep {")?;
    let order = names_after(item(&code, "pub const ALL: ", "];")?, "CommitStep::");
    let order = order.into_iter().filter(|name| known.contains(name)).collect::<Vec<_>>();
    assert_eq!(order, known, "every step is in the list, and in the order in which it is declared");

    let steps = variants(&model, "pub(crate) enum Step {")?;
    let strange = steps.iter().filter(|step| !known.contains(step));
    let mut wrong: Vec<String> = strange.map(|step| format!("{step} is no step of the code")).collect();
    for list in ["pub(crate) const STEPS: ", "pub(crate) const STEPS_AHEAD: "] {
        let taken = names_after(item(&model, list, "];")?, "Step::");
        let expected: Vec<String> = known.iter().filter(|step| taken.contains(step)).cloned().collect();
        if taken != expected {
            wrong.push(format!("{list}the model goes {taken:?}, the code {expected:?}"));
        }
        anyhow::ensure!(taken.len() > 1, "{list}nothing is compared");
    }
    // What the model leaves out is left out on purpose.
    const LEFT_OUT: [&str; 4] = ["CheckConstraints", "PreCommitConditions", "Recorded", "Published"];
    let missing = known.iter().filter(|step| !steps.contains(step) && !LEFT_OUT.contains(&&***step));
    wrong.extend(missing.map(|step| format!("{step} is not in the model")));
    expect_none(wrong);
    Ok(())
}

/// A row of the table in `tests/model/README.md`.
struct Row<'a> {
    mutation: &'a str,
    rule: &'a str,
    missed_by: &'a str,
}

fn rows_of_mutations(readme: &str) -> Vec<Row<'_>> {
    let (_, table) = readme.split_once("| mutation | rule of the code | missed by |").unwrap_or_default();
    let cells = table.lines().skip(2).map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let rows = cells.take_while(|cells| cells.len() == 5);
    rows.map(|cells| Row { mutation: cells[1].trim_matches('`'), rule: cells[2], missed_by: cells[3] }).collect()
}

/// The words between backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// What the model refutes is refuted in the code as well, by a test that is really run with the rule left out.
#[test]
fn every_mutation_of_the_model_is_one_of_the_code() -> Result<()> {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned());
    let readme = read("tests/model/README.md")?;
    let mutations = read("tests/model/src/mutations.rs")?;
    let declared: Vec<&str> = item(&mutations, "\nmutations! {", "\n}")?
        .lines()
        .filter_map(|line| line.split_once(" breaks ").map(|(name, _)| name.trim()))
        .collect();
    anyhow::ensure!(!declared.is_empty(), "no mutation was found");

    let rows = rows_of_mutations(&readme);
    let mut wrong = Vec::new();
    let listed: Vec<&str> = rows.iter().map(|row| row.mutation).collect();
    for (some, others, what) in [(&declared, &listed, "is not in the table"), (&listed, &declared, "is no mutation")] {
        wrong.extend(some.iter().filter(|name| !others.contains(name)).map(|name| format!("{name} {what}")));
    }

    let rules = read("src/rule.rs")?;
    let known = variants(&rules, "pub(crate) enum Rule {")?;
    let (by_chance, by_test) = (read("tests/simulation_rules.rs")?, read("tests/rules.rs")?);
    let by_story = read("tests/sweep_rules.rs")?;
    for Row { mutation, rule, missed_by } in &rows {
        let Some(name) = quoted(rule).first().and_then(|name| name.strip_prefix("Rule::")) else {
            // Said in words, with a reason.
            if *rule != "none" || missed_by.is_empty() {
                wrong.push(format!("{mutation}: '{rule}' is no rule"));
            }
            continue;
        };
        let Some((_, fail_point)) = rules.split_once(&format!("Rule::{name} => \"")) else {
            wrong.push(format!("{mutation}: there is no rule {name}"));
            continue;
        };
        let fail_point = fail_point.split('"').next().unwrap_or_default();
        let [test, file] = quoted(missed_by)[..] else {
            wrong.push(format!("{mutation}: '{missed_by}' names no test and its file"));
            continue;
        };
        if !read(file).is_ok_and(|text| text.contains(&format!("fn {test}("))) {
            wrong.push(format!("{mutation}: there is no test {test} in {file}"));
        }
        let run = match file {
            "tests/simulation_rules.rs" => by_chance.contains(&format!("\"{fail_point}\"")),
            "tests/sweep_rules.rs" => {
                let mut lines = by_story.lines().filter(|line| line.contains(&format!("\"{fail_point}\"")));
                lines.any(|line| line.contains(&format!("{test}(")))
            }
            _ => {
                let mut lines =
                    by_test.lines().map(str::trim).filter(|line| line.starts_with(&format!("\"{fail_point}\"")));
                lines.any(|line| line.contains(&format!("::{test}")))
            }
        };
        if !run {
            wrong.push(format!("{mutation}: nobody runs {test} with {fail_point} left out"));
        }
    }
    for name in known {
        let Some((_, fail_point)) = rules.split_once(&format!("Rule::{name} => \"")) else {
            wrong.push(format!("{name} has no fail point"));
            continue;
        };
        let fail_point = fail_point.split('"').next().unwrap_or_default();
        if ![&by_chance, &by_test, &by_story].iter().any(|text| text.contains(&format!("\"{fail_point}\""))) {
            wrong.push(format!("nobody leaves out {fail_point}"));
        }
    }
    expect_none(wrong);
    Ok(())
}
