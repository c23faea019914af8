//! The checker shares no code with what it checks.

/// A crate of a registry can't depend on one of this workspace, so its own manifest decides.
#[test]
fn the_checker_depends_on_no_crate_of_this_workspace() {
    let manifest = include_str!("../Cargo.toml");
    let (_, dependencies) = manifest.split_once("[dependencies]").expect("it has dependencies");
    let names = dependencies
        .lines()
        .filter(|line| !line.starts_with(['#', '[']))
        .filter_map(|line| line.split(['.', ' ', '=']).next().filter(|name| !name.is_empty()));
    let names: Vec<&str> = names.collect();
    assert_eq!(names, ["adya", "serde", "serde_json", "thiserror", "proptest"]);
    assert!(!dependencies.contains("path"), "a path leads into this workspace");
}
