//! Tables: names, kinds, metadata, and what creating and removing them leaves behind.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{CheckAndSet, KvsError, RowRange, TableDescription, TableKind, TableRef, Timestamp};
use bytes::Bytes;

/// A created table has the name, kind and metadata that it was given.
pub async fn created_table_is_described(store: &mut TestStore) {
    for (name, kind) in [("v", TableKind::Versioned), ("a", TableKind::Atomic)] {
        store.create_table(&table(name), kind, bytes(b"\0meta\xff")).await.expect("a table can be created");
        let expected = TableDescription { table: table(name), kind, metadata: bytes(b"\0meta\xff") };
        assert_eq!(store.table(&table(name)).await.expect("a table can be described"), Some(expected));
    }
}

/// A table that does not exist has no description, which is no error.
pub async fn absent_table_has_no_description(store: &mut TestStore) {
    assert_eq!(store.table(&table("nowhere")).await.expect("absence can be told"), None);
    assert_eq!(store.tables().await.expect("tables can be listed"), []);
}

/// All tables are listed in the order of their names, and no table that nobody created.
pub async fn tables_are_listed_in_order_of_names(store: &mut TestStore) {
    for name in ["b", "a.b", "_internal", "a_b", "B", "a-b", "a", "0"] {
        versioned(store, name).await;
    }
    assert_eq!(names(store).await, ["0", "B", "_internal", "a", "a-b", "a.b", "a_b", "b"]);
}

/// Creating a table that exists leaves its metadata and data as they are.
pub async fn create_is_idempotent(store: &mut TestStore) {
    let (t, a) = (table("t"), table("a"));
    for metadata in ["first", "second"] {
        store.create_table(&t, TableKind::Versioned, bytes(metadata)).await.expect("create is idempotent");
        store.create_table(&a, TableKind::Atomic, bytes(metadata)).await.expect("create is idempotent");
        put(store, &t, &[("r", "c", 1, "v")]).await;
        put_unless_exists(store, &a, &cell("r", "c"), bytes("v")).await;
    }
    assert_eq!(metadata(store, &t).await, "first");
    assert_eq!(metadata(store, &a).await, "first");
    assert_eq!(stored(store, &t).await, ["r/c@1=v"]);
    assert_eq!(stored_atomic(store, &a).await, ["r/c=v"]);
}

/// A table is not created with another kind than it has, and keeps what it holds.
pub async fn create_with_the_other_kind_is_refused(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    put(store, &t, &[("r", "c", 1, "v")]).await;
    assert_fails!(store.create_table(&t, TableKind::Atomic, Bytes::new()).await, KvsError::WrongTableKind { .. });
    assert_fails!(store.create_table(&a, TableKind::Versioned, Bytes::new()).await, KvsError::WrongTableKind { .. });
    assert_eq!(stored(store, &t).await, ["r/c@1=v"]);
}

/// Many callers may create one table at once: it is there once, with the metadata of one of them, which nobody sees
/// change, and with the data of all.
pub async fn concurrent_creates_all_succeed(store: &mut TestStore) {
    let tables: Vec<_> = (0..8 * haste(store)).map(|number| table(&format!("t{number:02}"))).collect();
    // All walk along the same names: whoever finds them taken is faster and catches up with whoever takes them.
    let creators = together(8, |creator| {
        let (store, tables, mine) = (store.share(), tables.clone(), bytes(creator.to_string()));
        async move {
            let mut seen = Vec::new();
            for table in tables {
                store.create_table(&table, TableKind::Versioned, mine.clone()).await.expect("many may create a table");
                // The table is usable as soon as any create has returned.
                let version = (cell(&mine, "c"), value(1, "v"));
                store.put_versions(&table, vec![version]).await.expect("versions can be put");
                seen.push(store.table(&table).await.expect("a table can be described").expect("the table exists"));
            }
            seen
        }
    });
    let seen = creators.await;
    let listed = store.tables().await.expect("tables can be listed");
    assert!(listed.iter().map(|description| &description.table).eq(&tables), "{listed:?}");
    for of_one in seen {
        assert_eq!(of_one, listed, "what was seen after any create is what stays");
    }
    for table in &tables {
        let creator: usize = metadata(store, table).await.parse().expect("a creator's number was left");
        assert!(creator < 8, "the metadata of {table} come from one of its creators");
        assert_eq!(stored(store, table).await.len(), 8, "{table} holds what all of them put");
    }
}

/// Of concurrent creates with different kinds, those of one kind succeed and the others are refused.
pub async fn concurrent_creates_of_both_kinds_agree_on_one(store: &mut TestStore) {
    let creators = together(16, |creator| {
        let store = store.share();
        let kind = if creator % 2 == 0 { TableKind::Versioned } else { TableKind::Atomic };
        async move { (kind, store.create_table(&table("t"), kind, Bytes::new()).await) }
    });
    let outcomes = creators.await;
    let kind = store.table(&table("t")).await.expect("a table can be described").expect("the table was created").kind;
    for (wanted, outcome) in outcomes {
        if wanted == kind {
            outcome.expect("the kind is the one that was asked for");
        } else {
            assert_fails!(outcome, KvsError::WrongTableKind { .. });
        }
    }
}

/// A dropped table is gone, and so are its data and metadata.
pub async fn drop_removes_data_and_metadata(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    put(store, &t, &[("r", "c", 1, "v")]).await;
    store.drop_table(&t).await.expect("a table can be dropped");
    store.drop_table(&a).await.expect("a table can be dropped");
    assert_eq!(store.tables().await.expect("tables can be listed"), []);
    assert_eq!(store.table(&t).await.expect("absence can be told"), None);
    assert_fails!(outcome(store.scan(&t, everything())).await, KvsError::NoSuchTable(_));
}

/// Dropping a table that does not exist is fine.
pub async fn drop_of_an_absent_table_is_fine(store: &mut TestStore) {
    store.drop_table(&table("nowhere")).await.expect("absent tables are fine");
    let t = versioned(store, "t").await;
    store.drop_table(&t).await.expect("a table can be dropped");
    store.drop_table(&t).await.expect("absent tables are fine");
}

/// A table created again under an old name is empty, has the new metadata, and may have the other kind.
pub async fn recreated_table_is_empty(store: &mut TestStore) {
    let t = table("t");
    for round in 0..3 {
        let versioned = TableDescription { table: t.clone(), kind: TableKind::Versioned, metadata: bytes([round]) };
        store.create_table(&t, versioned.kind, versioned.metadata.clone()).await.expect("a table can be created");
        assert_eq!(store.table(&t).await.expect("a table can be described"), Some(versioned));
        assert_eq!(stored(store, &t).await, [""; 0]);
        put(store, &t, &[("r", "c", 1, ["x", "y", "z"][usize::from(round)]), ("s", "c", 2, "v")]).await;
        store.add_sentinels(&t, &[cell("r", "c")]).await.expect("sentinels can be added");
        store.drop_table(&t).await.expect("a table can be dropped");

        store.create_table(&t, TableKind::Atomic, Bytes::new()).await.expect("the name is free again");
        assert_eq!(stored_atomic(store, &t).await, [""; 0]);
        let set = check_and_set(store, &t, &cell("r", "c"), None, Some(bytes([round]))).await;
        assert_eq!(set, CheckAndSet::Applied);
        store.drop_table(&t).await.expect("a table can be dropped");
    }
}

/// Dropping one table does nothing to its neighbours in the order of names.
pub async fn drop_leaves_other_tables(store: &mut TestStore) {
    for name in ["t", "t.a", "t0", "s"] {
        put(store, &versioned(store, name).await, &[("r", "c", 1, name)]).await;
    }
    store.drop_table(&table("t")).await.expect("a table can be dropped");
    assert_eq!(names(store).await, ["s", "t.a", "t0"]);
    for name in ["s", "t.a", "t0"] {
        assert_eq!(stored(store, &table(name)).await, [format!("r/c@1={name}")]);
    }
}

/// Truncating removes the data of a table of either kind and keeps the table, its kind and metadata.
pub async fn truncate_keeps_the_table(store: &mut TestStore) {
    let (t, a, other) = (table("t"), table("a"), versioned(store, "other").await);
    store.create_table(&t, TableKind::Versioned, bytes("of t")).await.expect("a table can be created");
    store.create_table(&a, TableKind::Atomic, bytes("of a")).await.expect("a table can be created");
    put(store, &t, &[("r", "c", 1, "v"), ("r", "c", 2, "w"), ("s", "c", 1, "v")]).await;
    put(store, &other, &[("r", "c", 1, "v")]).await;
    store.add_sentinels(&t, &[cell("r", "c")]).await.expect("sentinels can be added");
    put_unless_exists(store, &a, &cell("r", "c"), bytes("v")).await;

    for truncated in [&t, &a] {
        store.truncate_table(truncated).await.expect("a table can be truncated");
        store.truncate_table(truncated).await.expect("an empty table can be truncated");
    }
    assert_eq!(stored(store, &t).await, [""; 0]);
    assert_eq!(stored_atomic(store, &a).await, [""; 0]);
    assert_eq!(metadata(store, &t).await, "of t");
    assert_eq!(metadata(store, &a).await, "of a");
    assert_eq!(stored(store, &other).await, ["r/c@1=v"], "a neighbour stays");
}

/// A truncated table takes data again, at the same places as before.
pub async fn truncated_table_takes_data_again(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    for content in ["one", "two"] {
        put(store, &t, &[("r", "c", 1, content)]).await;
        let set = check_and_set(store, &a, &cell("r", "c"), None, Some(bytes(content))).await;
        assert_eq!(set, CheckAndSet::Applied);
        assert_eq!(stored(store, &t).await, [format!("r/c@1={content}")]);
        assert_eq!(stored_atomic(store, &a).await, [format!("r/c={content}")]);
        store.truncate_table(&t).await.expect("a table can be truncated");
        store.truncate_table(&a).await.expect("a table can be truncated");
    }
}

/// Metadata are replaced as a whole, and the data stay.
pub async fn metadata_are_replaced(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 1, "v")]).await;
    let long = vec![0xff; 100_000];
    for content in [&b"one"[..], b"", b"\0\xff\0", &long] {
        store.put_table_metadata(&t, bytes(content)).await.expect("metadata can be put");
        let description = store.table(&t).await.expect("a table can be described").expect("the table exists");
        assert!(description.metadata == content, "{} bytes of metadata come back", content.len());
        assert_eq!(store.tables().await.expect("tables can be listed"), [description]);
    }
    assert_eq!(stored(store, &t).await, ["r/c@1=v"]);
}

/// Names that differ in case, in a separator, or only in the last of 200 bytes are names of different tables.
pub async fn similar_names_are_different_tables(store: &mut TestStore) {
    let long = |last: char| "x".repeat(TableRef::MAX_LEN - 1) + &last.to_string();
    let prefix = "x".repeat(TableRef::MAX_LEN - 1);
    let mut similar: Vec<String> =
        ["a.b", "a_b", "a-b", "ab", "A.b", "a.B", "a..b", "a", "A", "_a", ".a", "-a", "a.", "1", "01", ".a.", "..."]
            .map(str::to_owned)
            .to_vec();
    similar.extend([long('a'), long('b'), long('A'), long('_'), prefix, "X".repeat(TableRef::MAX_LEN)]);
    for (number, name) in similar.iter().enumerate() {
        put(store, &versioned(store, name).await, &[("r", "c", number as u64 + 1, name)]).await;
        store.put_table_metadata(&table(name), bytes(name)).await.expect("metadata can be put");
    }
    for (number, name) in similar.iter().enumerate() {
        let held = store.get(&table(name), &bounds(&[("r", "c", 1_000)])).await.expect("cells can be read");
        assert_eq!(held, [Some(value(number as u64 + 1, name))], "{name}");
        assert_eq!(scan(store, &table(name), everything()).await.len(), 1, "{name}");
        assert_eq!(metadata(store, &table(name)).await, *name);
    }
    similar.sort();
    assert_eq!(names(store).await, similar);
}

/// The same cells in two tables are different cells; whatever is done in one is not seen in the other.
pub async fn tables_do_not_mix(store: &mut TestStore) {
    let (t, u) = (versioned(store, "t").await, versioned(store, "u").await);
    let (a, b) = (atomic(store, "a").await, atomic(store, "b").await);
    put(store, &t, &[("r", "c", 1, "of t"), ("z", "z", 1, "of t")]).await;
    put(store, &u, &[("r", "c", 1, "of u"), ("a", "a", 1, "of u")]).await;
    for (table, content) in [(&a, "of a"), (&b, "of b")] {
        put_unless_exists(store, table, &cell("r", "c"), bytes(content)).await;
    }
    assert_eq!(stored(store, &t).await, ["r/c@1=of t", "z/z@1=of t"]);
    assert_eq!(stored(store, &u).await, ["a/a@1=of u", "r/c@1=of u"]);
    store.delete_rows(&t, &RowRange::all()).await.expect("rows can be deleted");
    assert_eq!(stored(store, &u).await, ["a/a@1=of u", "r/c@1=of u"]);
    assert_eq!(stored_atomic(store, &a).await, ["r/c=of a"]);
    assert_eq!(stored_atomic(store, &b).await, ["r/c=of b"]);
}

/// Every operation on a table that does not exist fails with `NoSuchTable`, and none creates it.
pub async fn absent_table_is_no_such_table(store: &mut TestStore) {
    let nowhere = table("nowhere");
    let mut outcomes = versioned_operations(store, &nowhere).await;
    outcomes.extend(atomic_operations(store, &nowhere).await);
    outcomes.extend(table_operations(store, &nowhere).await);
    for (operation, outcome) in outcomes {
        let error = outcome.expect_err(operation);
        assert!(is_no_such_table(&error, &nowhere), "{operation}: {error:?}");
    }
    assert_eq!(store.tables().await.expect("tables can be listed"), []);
}

/// Every operation on a table of the other kind fails with `WrongTableKind` and writes nothing.
pub async fn other_kind_is_wrong_table_kind(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    put(store, &t, &[("r", "c", 7, "v")]).await;
    put_unless_exists(store, &a, &cell("r", "c"), bytes("v")).await;
    for (table, outcomes) in [(&a, versioned_operations(store, &a).await), (&t, atomic_operations(store, &t).await)] {
        for (operation, outcome) in outcomes {
            let error = outcome.expect_err(operation);
            let names_it = matches!(&error, KvsError::WrongTableKind { table: named, .. } if named == table);
            assert!(names_it, "{operation}: {error:?}");
        }
    }
    assert_eq!(stored(store, &t).await, ["r/c@7=v"]);
    assert_eq!(stored_atomic(store, &a).await, ["r/c=v"]);
}

/// Tables of both kinds have a size, empty or not.
pub async fn size_is_told_for_both_kinds(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    for _ in 0..2 {
        store.table_size(&t).await.expect("the size can be told");
        store.table_size(&a).await.expect("the size can be told");
        put(store, &t, &[("r", "c", 1, "v")]).await;
        put_unless_exists(store, &a, &cell("r", "c"), bytes("v")).await;
    }
}

/// Empty input is answered with empty output without a visit to the store, which so can't miss the table.
pub async fn empty_input_needs_no_table(store: &mut TestStore) {
    let nowhere = table("nowhere");
    assert_eq!(store.get(&nowhere, &[]).await.expect("nothing was asked"), []);
    assert_eq!(store.versions(&nowhere, &[]).await.expect("nothing was asked"), [[]; 0]);
    assert!(store.get_atomic(&nowhere, &[]).await.expect("nothing was asked").is_empty());
    store.put(vec![], ts(1)).await.expect("nothing was asked");
    store.put_versions(&nowhere, vec![]).await.expect("nothing was asked");
    store.add_sentinels(&nowhere, &[]).await.expect("nothing was asked");
    store.delete_versions(&nowhere, &[]).await.expect("nothing was asked");
    store.delete_version_ranges(&nowhere, &[]).await.expect("nothing was asked");
    if store.capabilities().atomic_batch {
        apply(store, vec![]).await.expect("nothing was asked");
    }
}

/// An empty selection of a table that exists is empty too.
pub async fn empty_input_gives_empty_output(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 1, "v")]).await;
    assert_eq!(store.get(&t, &[]).await.expect("nothing was asked"), []);
    store.put(vec![(t.clone(), vec![])], ts(1)).await.expect("nothing was asked");
    let nothing = atlas_kvs::CellTimestamps { cell: cell("r", "c"), timestamps: vec![] };
    store.delete_versions(&t, &[nothing]).await.expect("nothing was asked");
    assert_eq!(scan(store, &t, atlas_kvs::Scan::new(RowRange::new("r", "r"), Timestamp::MAX)).await, [""; 0]);
    assert_eq!(stored(store, &t).await, ["r/c@1=v"]);
}

async fn names(store: &TestStore) -> Vec<String> {
    let tables = store.tables().await.expect("tables can be listed");
    tables.iter().map(|description| description.table.name().to_owned()).collect()
}

async fn metadata(store: &TestStore, table: &TableRef) -> String {
    let description = store.table(table).await.expect("a table can be described").expect("the table exists");
    String::from_utf8(description.metadata.to_vec()).expect("the metadata are text")
}
