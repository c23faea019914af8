//! What goes wrong between the program and its server: the exit code says what kind it is, the message what to do, and a
//! password is never in it.

use crate::common::{Place, StoreKind, postgres};
use crate::stage::{Ran, Stage};
use crate::{Connection, config};

const SECRET: &str = "s3cret-and-wrong";

/// A command on a store whose connection is changed so.
fn atlas(change: impl Fn(&mut Connection) + Send + Sync + 'static, line: &str) -> Ran {
    let place = Place::new(StoreKind::Postgres);
    let stage = Stage::on_server(move |dir, _| config(dir, place.namespace(), &change));
    let ran = stage.atlas(line);
    for said in [&ran.stdout, &ran.stderr] {
        assert!(!said.contains(SECRET), "the password is shown: {ran:#?}");
    }
    let ran_in_json = stage.atlas(&format!("{line} -o json"));
    assert_eq!(ran_in_json.code, ran.code, "{ran_in_json:#?}");
    assert!(!ran_in_json.stdout.contains(SECRET) && !ran_in_json.stderr.contains(SECRET), "{ran_in_json:#?}");
    ran
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs SQL on the server.
fn sql(statement: &str) {
    runtime().block_on(async { postgres::client().await.batch_execute(statement).await.unwrap() });
}

const LINES: [&str; 3] = ["table create t", "kv get t r c", "status"];

#[test]
fn a_wrong_password_is_not_permitted() {
    if std::env::var("PGPASSWORD").unwrap_or_default().is_empty() {
        panic!("this server wants no password; run scripts/test postgres");
    }
    for line in LINES {
        atlas(|connection| connection.password = SECRET.to_owned(), line).fails(11);
    }
}

#[test]
fn an_unknown_user_is_not_permitted() {
    for line in LINES {
        atlas(|connection| connection.user = "nobody_of_that_name".to_owned(), line).fails(11);
    }
}

#[test]
fn a_missing_database_is_a_wrong_configuration() {
    for line in LINES {
        let ran = atlas(|connection| connection.database = "no_such_database".to_owned(), line);
        ran.fails(8).says("no_such_database");
    }
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    for line in LINES {
        // Nobody listens there: only root may, and only by that number.
        let ran = atlas(|connection| (connection.host, connection.port) = ("127.0.0.1".to_owned(), 1), line);
        ran.fails(6).says("127.0.0.1");
    }
}

#[test]
fn a_host_without_an_address_is_told() {
    let ran = atlas(|connection| connection.host = "no-such-host.invalid".to_owned(), "status");
    assert!(matches!(ran.code, Some(6 | 8)), "{ran:#?}");
    ran.fails(ran.code.unwrap()).says("no-such-host.invalid");
}

#[test]
fn who_may_not_make_a_schema_is_not_permitted() {
    let user = format!("stranger_{}", std::process::id());
    sql(&format!("CREATE ROLE {user} LOGIN PASSWORD 'stranger'"));
    let name = user.clone();
    let ran = atlas(
        move |connection| {
            connection.user.clone_from(&name);
            connection.password = "stranger".to_owned();
        },
        "table create t",
    );
    sql(&format!("DROP ROLE {user}"));
    ran.fails(11);
}

/// The tables are another's: they can't even be looked at.
#[test]
fn who_may_not_read_the_tables_is_not_permitted() {
    let place = Place::new(StoreKind::Postgres);
    let namespace = place.namespace().to_owned();
    let user = format!("guest_{}", std::process::id());
    let stage = Stage::on_server(move |dir, _| config(dir, &namespace, |_| {}));
    stage.make_accounts();
    sql(&format!("CREATE ROLE {user} LOGIN PASSWORD 'guest'"));
    let (namespace, name) = (place.namespace().to_owned(), user.clone());
    let guest = Stage::on_server(move |dir, _| {
        config(dir, &namespace, |connection| {
            connection.user.clone_from(&name);
            connection.password = "guest".to_owned();
        })
    });
    let ran = guest.atlas("kv get accounts alice balance");
    sql(&format!("DROP ROLE {user}"));
    ran.fails(11);
    assert_eq!(stage.accounts().lines().count(), 3);
}

/// Another namespace in the same database sees nothing of this one.
#[test]
fn namespaces_do_not_mix() {
    let (one, two) = (crate::stage(), crate::stage());
    one.make_accounts();
    two.atlas("table create accounts").ok();
    assert_eq!(two.accounts(), "");
    assert_eq!(one.accounts().lines().count(), 3);
}
