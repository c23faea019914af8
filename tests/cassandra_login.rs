//! A Cassandra node that asks who one is: with the right answer everything works, and each wrong one is "not permitted",
//! with nothing made and no password shown.

// What can't be unwrapped here has failed the test.
#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code, reason = "it serves other tests too")]
#[path = "operate/stage.rs"]
mod stage;

use common::cassandra::OwnNode;
use stage::{Ran, Stage};

/// The password of the user that every new cluster knows, which is his name.
const ADMINISTRATOR: (&str, &str) = ("cassandra", "cassandra");
const SECRET: &str = "s3cret-and-wrong";

/// A command as this user, on a namespace of the node.
fn atlas(node: &OwnNode, (user, password): (&str, &str), line: &str) -> Ran {
    let contact = node.host();
    let (name, secret) = (user.to_owned(), password.to_owned());
    let stage = Stage::on_server(move |dir, _| {
        let mut login = String::new();
        if !name.is_empty() {
            let file = dir.join("password");
            std::fs::write(&file, &secret).unwrap();
            login = format!("    user: {name}\n    passwordFile: {}\n", file.display());
        }
        format!(
            "atlasdb:\n  namespace: bank\n  leader: {{lease: 1s}}\n  server: {{http: off, grpc: off}}\n  \
             keyValueService:\n    type: cassandra\n    contactPoints: {contact}\n{login}"
        )
    });
    let ran = stage.atlas(line);
    for said in [&ran.stdout, &ran.stderr] {
        assert!(!said.contains(SECRET), "the password is shown: {ran:#?}");
    }
    ran
}

#[test]
fn who_one_is_decides_what_one_may_do() {
    let node = OwnNode::start(&[("ATLAS_CASSANDRA_LOGINS", "yes")]);
    let cql = |statement| node.must(&["cql", statement]);
    let keyspaces = || cql("SELECT keyspace_name FROM system_schema.keyspaces");
    let nobody = ("", "");
    for who in [nobody, ("cassandra", SECRET), ("nobody_of_that_name", SECRET)] {
        for line in ["table create t", "kv get t r c", "-vvv status"] {
            atlas(&node, who, line).fails(11).says("check user and password");
        }
        let in_json = atlas(&node, who, "status -o json");
        assert_eq!((in_json.code, &in_json.document()["error"]["code"]), (Some(11), &"PERMISSION".into()));
    }
    cql("CREATE ROLE guest WITH PASSWORD = 'guest' AND LOGIN = true");
    let guest = ("guest", "guest");
    atlas(&node, guest, "table create t").fails(11).says("grant the user what it needs");
    assert!(!keyspaces().contains("atlas_bank"), "it was made");

    atlas(&node, ADMINISTRATOR, "table create t").ok();
    atlas(&node, ADMINISTRATOR, "kv put t r c v").ok();
    // Tables of somebody else can't be read, nor emptied, nor can what is not seen be taken for missing.
    for line in ["kv get t r c", "kv put t r c w", "table drop t --yes", "status"] {
        atlas(&node, guest, line).fails(11).says("grant the user what it needs");
    }
    assert_eq!(atlas(&node, ADMINISTRATOR, "kv get t r c").ok(), "v");
    cql("GRANT ALL PERMISSIONS ON KEYSPACE atlas_bank TO guest");
    until_it_may(&node, guest);
}

/// What was granted is seen when the node looks next: it remembers for a while who may do what.
fn until_it_may(node: &OwnNode, guest: (&str, &str)) {
    for _ in 0..60 {
        let ran = atlas(node, guest, "kv get t r c");
        if ran.code == Some(0) {
            assert_eq!(ran.ok(), "v");
            return;
        }
        ran.fails(11);
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    panic!("what was granted is never seen");
}
