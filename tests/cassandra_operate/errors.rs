//! What goes wrong between the program and its cluster: the exit code says what kind it is, the message what to do.

use crate::common::cql_wire::CqlWire;
use crate::common::{Place, StoreKind, cassandra};
use crate::config;
use crate::stage::{Ran, Stage};
use std::io::{Read, Write};
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
            let _ = stream.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
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

/// A real node, on a wire that makes it look old.
#[test]
fn a_server_that_is_too_old_is_a_wrong_configuration() {
    let version = cassandra::cql("SELECT release_version FROM system.local").remove(0).remove(0);
    let old = format!("3{}", &version[1..]);
    let host = cassandra::settings().contact_points.split([',', ':']).next().unwrap().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let wire = runtime.block_on(CqlWire::that_says(&host, &version, &old));
    for line in LINES {
        let ran = atlas(&format!("contactPoints={}", wire.contact_point()), line);
        ran.fails(8).says(&format!("Cassandra {old}")).says("4.0 or later");
    }
    // It is the version alone that is wrong with it.
    let wire = runtime.block_on(CqlWire::before(&host));
    atlas(&format!("contactPoints={}", wire.contact_point()), "status").fails(4);
}

/// It takes the connection, says all the time that it is there, and goes no further. The driver would wait for ever.
#[test]
fn a_node_that_never_lets_anybody_in_is_given_up() {
    // Of messages, in the cluster's language.
    const OPTIONS: u8 = 0x05;
    const SUPPORTED: u8 = 0x06;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut header = [0; 9];
                while stream.read_exact(&mut header).is_ok() {
                    let len = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
                    std::io::copy(&mut (&mut stream).take(len.into()), &mut std::io::sink()).unwrap();
                    if header[4] == OPTIONS {
                        // On the same stream, with no options at all.
                        let answer = [0x84, 0, header[2], header[3], SUPPORTED, 0, 0, 0, 2, 0, 0];
                        let _ = stream.write_all(&answer);
                    }
                }
            });
        }
    });
    atlas(&format!("contactPoints=127.0.0.1:{port} requestTimeout=1s"), "status")
        .fails(6)
        .says(&format!("127.0.0.1:{port}: no answer within"));
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
