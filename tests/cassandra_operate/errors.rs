//! What goes wrong between the program and its cluster: the exit code says what kind it is, the message what to do.

use crate::common::{Place, StoreKind, cassandra};
use crate::config;
use crate::stage::{Ran, Stage};
use std::net::TcpListener;

/// A command on a store whose settings are changed so.
fn atlas(settings: &str, line: &str) -> Ran {
    let place = Place::new(StoreKind::Cassandra);
    let stage = Stage::on_server(move |dir, _| config(dir, &place));
    let settings: String = settings.split_whitespace().map(|set| format!("--set keyValueService.{set} ")).collect();
    let ran = stage.atlas(&format!("{settings}{line}"));
    let in_json = stage.atlas(&format!("{settings}{line} -o json"));
    assert_eq!(in_json.code, ran.code, "{in_json:#?}");
    assert_eq!(in_json.document()["error"]["retryable"], ran.code == Some(6), "{in_json:#?}");
    // One line, and not the driver's own.
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:#?}");
    ran
}

const LINES: [&str; 3] = ["table create t", "kv get t r c", "status"];

#[test]
fn a_cluster_that_is_not_there_is_unavailable() {
    for line in LINES {
        // Nobody listens there: only root may, and only by that number.
        atlas("contactPoints=127.0.0.1:1", line).fails(6).says("127.0.0.1:1");
    }
}

#[test]
fn a_host_without_an_address_is_told() {
    atlas("contactPoints=no-such-host.invalid", "status").fails(6).says("no-such-host.invalid");
}

/// Of several contact points one is enough.
#[test]
fn one_contact_point_that_answers_is_enough() {
    let stage = crate::stage();
    stage.make_accounts();
    let points = format!("127.0.0.1:1,{}", cassandra::settings().contact_points);
    let ran = stage.atlas(&format!("--set keyValueService.contactPoints={points} kv get accounts alice balance"));
    assert_eq!((ran.ok(), &*ran.stderr), ("100".to_owned(), ""));
}

/// What listens there speaks, and not the cluster's language.
#[test]
fn another_server_on_the_port_is_told_from_a_cluster() {
    let point = &cassandra::connection("").contact_points[0];
    let host = point.split(':').next().unwrap();
    // The nodes' own port, for each other.
    atlas(&format!("contactPoints={host}:7000"), "status").fails(6).says(":7000");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = std::io::Write::write_all(&mut stream.unwrap(), b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    atlas(&format!("contactPoints=127.0.0.1:{port}"), "status").fails(6).says(&port.to_string());
}

/// It takes the connection and says nothing.
#[test]
fn a_node_that_hangs_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    atlas(&format!("contactPoints=127.0.0.1:{port}"), "status").fails(6).says(&port.to_string());
}

#[test]
fn a_user_without_a_password_is_a_wrong_configuration() {
    atlas("user=somebody", "status").fails(8).says("password");
}

/// Another namespace in the same cluster sees nothing of this one.
#[test]
fn namespaces_do_not_mix() {
    let (one, two) = (crate::stage(), crate::stage());
    one.make_accounts();
    two.atlas("table create accounts").ok();
    assert_eq!(two.accounts(), "");
    assert_eq!(one.accounts().lines().count(), 3);
}
