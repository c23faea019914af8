//! Names and values of any bytes and lengths, within the limits that the store states.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{BatchOp, Cell, CellBound, CheckAndSet, KvsError, RowRange, Scan, TableRef, Timestamp};
use bytes::Bytes;

/// The longest value or name that a case makes to see it refused. Stores with higher limits are not asked.
const LEN_MAX: usize = 1 << 30;

/// Names that an encoding is likely to confuse: prefixes of each other, end marks and escapes inside.
fn confusing_names(store: &TestStore) -> Vec<&'static [u8]> {
    let mut names: Vec<&[u8]> = vec![
        b"\0",
        b"\0\0",
        b"\0\x01",
        b"\0\xff",
        b"\0a",
        b"\x01",
        b"a",
        b"a\0",
        b"a\0\0",
        b"a\0\0b",
        b"a\0\xff",
        b"a\0b",
        b"a\x01",
        b"aa",
        b"a\xff",
        b"ab",
        b"b",
        b"\x7f",
        b"\x80",
        b"\xfe",
        b"\xfe\xff",
        b"\xff",
        b"\xff\0",
        b"\xff\xff",
    ];
    if store.capabilities().limits.empty_names {
        names.push(b"");
    }
    names.sort();
    names
}

fn confusing_cells(store: &TestStore) -> Vec<Cell> {
    let names = confusing_names(store);
    names.iter().flat_map(|row| names.iter().map(move |column| cell(row, column))).collect()
}

/// Any bytes in rows and columns lead to one cell and no other.
pub async fn similar_cells_do_not_mix(store: &mut TestStore) {
    let (t, cells) = (versioned(store, "t").await, confusing_cells(store));
    let content = |cell: &Cell| value(3, format!("value of {cell}"));
    store.put_versions(&t, cells.iter().map(|cell| (cell.clone(), content(cell))).collect()).await.expect("can be put");

    let asked: Vec<_> = cells.iter().map(|cell| CellBound::new(cell.clone(), Timestamp::MAX)).collect();
    let seen = store.get(&t, &asked).await.expect("cells can be read");
    for (cell, seen) in cells.iter().zip(seen) {
        assert_eq!(seen, Some(content(cell)), "{cell}");
    }
    for half in [0, 1] {
        let timestamps = cells.iter().skip(half).step_by(2);
        let doomed: Vec<_> =
            timestamps.map(|cell| atlas_kvs::CellTimestamps { cell: cell.clone(), timestamps: vec![ts(3)] }).collect();
        store.delete_versions(&t, &doomed).await.expect("versions can be deleted");
        let left: Vec<_> = if half == 0 { cells.iter().skip(1).step_by(2).collect() } else { vec![] };
        assert_eq!(cells_of(store, &t, everything()).await.iter().collect::<Vec<_>>(), left);
    }
}

/// The same in an atomic table.
pub async fn similar_atomic_cells_do_not_mix(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    let mut cells = confusing_cells(store);
    // An atomic write may be expensive: take a part of the pairs, the classic ones included.
    cells.retain(|cell| cell.row.len() + cell.column.len() <= 2);
    for cell in &cells {
        let content = bytes(format!("value of {cell}"));
        let set = check_and_set(store, &a, cell, None, Some(content.clone())).await;
        assert_eq!(set, CheckAndSet::Applied, "{cell}");
    }
    let seen = store.get_atomic(&a, &cells).await.expect("cells can be read");
    let expected: Vec<_> = cells.iter().map(|cell| Some(bytes(format!("value of {cell}")))).collect();
    assert_eq!(seen, expected);
    let content = |cell: &Cell| format!("value of {cell}").as_bytes().escape_ascii().to_string();
    let expected: Vec<_> = cells.iter().map(|cell| format!("{cell}={}", content(cell))).collect();
    assert_eq!(stored_atomic(store, &a).await, expected);
}

/// Cells are ordered by row and then by column, bytes compared as unsigned numbers.
pub async fn order_is_of_unsigned_bytes_row_first(store: &mut TestStore) {
    let (t, cells) = (versioned(store, "t").await, confusing_cells(store));
    let shuffled = (0..cells.len()).map(|number| cells[number * 7 % cells.len()].clone());
    assert_ne!(cells.len() % 7, 0, "the stride visits every cell");
    store.put_versions(&t, shuffled.map(|cell| (cell, value(1, "v"))).collect()).await.expect("versions can be put");
    assert_eq!(cells_of(store, &t, everything()).await, cells);
    assert_eq!(cells_of(store, &t, everything().reversed()).await, cells.iter().rev().cloned().collect::<Vec<_>>());
}

/// Ranges and prefixes of rows hold exactly the rows that the contract says, whatever their bytes.
pub async fn ranges_of_any_bytes_are_exact(store: &mut TestStore) {
    let (t, names) = (versioned(store, "t").await, confusing_names(store));
    // The first possible column lies right at the bounds of a range.
    let column = if store.capabilities().limits.empty_names { "" } else { "\0" };
    let versions = names.iter().map(|row| (cell(row, column), value(1, "v")));
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    let mut ranges: Vec<RowRange> = Vec::new();
    for start in &names {
        ranges.extend([RowRange::prefix(bytes(start)), RowRange::single(bytes(start))]);
        ranges.extend(names.iter().map(|end| RowRange::new(bytes(start), bytes(end))));
    }
    for rows in ranges {
        let expected: Vec<_> = names.iter().filter(|row| rows.contains(row)).map(|row| cell(row, column)).collect();
        assert_eq!(cells_of(store, &t, Scan::new(rows.clone(), Timestamp::MAX)).await, expected, "{rows:?}");
        let expected: Vec<_> = expected.into_iter().rev().collect();
        assert_eq!(cells_of(store, &t, Scan::new(rows.clone(), Timestamp::MAX).reversed()).await, expected, "{rows:?}");
    }
}

/// The empty row and the empty column are names like others, or refused before anything is written.
pub async fn empty_names_are_kept_or_refused(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    for empty in [cell("", ""), cell("", "c"), cell("r", "")] {
        let versions = vec![(cell("other", "other"), value(1, "v")), (empty.clone(), value(1, "empty"))];
        let put = store.put_versions(&t, versions).await;
        let set = store.check_and_set(&a, &empty, None, Some(bytes("empty"))).await;
        let mark = store.add_sentinels(&t, std::slice::from_ref(&empty)).await;
        if store.capabilities().limits.empty_names {
            put.expect("empty names are allowed");
            mark.expect("empty names are allowed");
            assert_eq!(set.expect("empty names are allowed"), CheckAndSet::Applied);
            let seen = store.get(&t, &[CellBound::new(empty.clone(), Timestamp::MAX)]).await;
            assert_eq!(seen.expect("cells can be read"), [Some(value(1, "empty"))]);
            assert_eq!(store.get_atomic(&a, &[empty]).await.expect("cells can be read"), [Some(bytes("empty"))]);
        } else {
            assert_fails!(put, KvsError::Unsupported { .. });
            assert_fails!(mark, KvsError::Unsupported { .. });
            assert_fails!(set, KvsError::Unsupported { .. });
            assert_eq!(stored(store, &t).await, [""; 0]);
            assert_eq!(stored_atomic(store, &a).await, [""; 0]);
        }
    }
}

/// Values of several MiB come back as they were, alone and in scans, or are refused by the stated limit.
pub async fn large_values_are_kept_or_refused(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    let limit = store.capabilities().limits.value_len_max;
    for len in [1 << 16, (1 << 20) - 1, 5 << 20] {
        // No run of equal bytes, so that nothing is saved by compression or lost by cutting.
        let content: Vec<u8> = (0..len as u32).map(|byte| (byte.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let content = Bytes::from(content);
        let put = store.put(vec![(t.clone(), vec![(cell("r", "c"), content.clone())])], ts(len as u64)).await;
        let (row, column) = (len.to_string(), "c");
        let set = store.check_and_set(&a, &cell(&row, column), None, Some(content.clone())).await;
        if len > limit {
            assert_fails!(put, KvsError::TooLarge { .. });
            assert_fails!(set, KvsError::TooLarge { .. });
            continue;
        }
        put.expect("the value is within the limit");
        assert_eq!(set.expect("the value is within the limit"), CheckAndSet::Applied);
        let seen = items(store.scan(&t, everything())).await;
        assert!(seen.len() == 1 && seen[0].1.ts.get() == len as u64 && seen[0].1.bytes == content, "{len} bytes");
        let seen = store.get_atomic(&a, &[cell(&row, column)]).await.expect("cells can be read");
        assert!(seen[0].as_ref() == Some(&content), "{len} bytes");
    }
}

/// Rows and columns of 1,500 bytes that differ only in the last are different, or refused by the stated limit.
pub async fn long_names_are_kept_or_refused(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    let limits = store.capabilities().limits;
    let name = |last: u8| [vec![0; 700], vec![0xff; 799], vec![last]].concat();
    let cells: Vec<_> =
        [(0, 0), (0, 255), (255, 0), (255, 255)].map(|(row, column)| cell(name(row), name(column))).to_vec();
    for (number, cell) in cells.iter().enumerate() {
        let put = store.put_versions(&t, vec![(cell.clone(), value(1, number.to_string()))]).await;
        let set = store.check_and_set(&a, cell, None, Some(bytes(number.to_string()))).await;
        if limits.row_len_max < 1_500 || limits.column_len_max < 1_500 || limits.cell_len_max < 3_000 {
            assert_fails!(put, KvsError::TooLarge { .. });
            assert_fails!(set, KvsError::TooLarge { .. });
        } else {
            put.expect("the names are within the limits");
            assert_eq!(set.expect("the names are within the limits"), CheckAndSet::Applied);
        }
    }
    if limits.row_len_max >= 1_500 && limits.column_len_max >= 1_500 && limits.cell_len_max >= 3_000 {
        assert_eq!(cells_of(store, &t, everything()).await, cells);
        let expected = [0, 1, 2, 3].map(|number| Some(bytes(number.to_string())));
        assert_eq!(store.get_atomic(&a, &cells).await.expect("cells can be read"), expected);
    }

    // One of the two at a time is within the limits of every store but the smallest.
    let (t, a) = (versioned(store, "t1").await, atomic(store, "a1").await);
    let short = [0_u8, 255];
    let rows = short.map(|last| cell(name(last), "c"));
    let columns = short.map(|last| cell("r", name(last)));
    let mut expected = Vec::new();
    for (limit, cells) in [(limits.row_len_max, rows), (limits.column_len_max, columns)] {
        for cell in cells {
            let put = store.put_versions(&t, vec![(cell.clone(), value(1, "v"))]).await;
            let set = store.check_and_set(&a, &cell, None, Some(bytes("v"))).await;
            if limit < 1_500 {
                assert_fails!(put, KvsError::TooLarge { .. });
                assert_fails!(set, KvsError::TooLarge { .. });
            } else {
                put.expect("the name is within the limit");
                assert_eq!(set.expect("the name is within the limit"), CheckAndSet::Applied);
                expected.push(cell);
            }
        }
    }
    assert_eq!(cells_of(store, &t, everything()).await, expected);
    let standing = store.get_atomic(&a, &expected).await.expect("cells can be read");
    assert_eq!(standing, vec![Some(bytes("v")); expected.len()]);
}

/// Names of exactly the stated length are accepted, as far as a test can make them.
pub async fn names_at_the_limits_are_accepted(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let limits = store.capabilities().limits;
    let name = |limit: usize| vec![b'n'; limit.min(1 << 20)];
    let mut cells = vec![cell("a", name(limits.column_len_max)), cell(name(limits.row_len_max), "c")];
    if limits.cell_len_max <= limits.row_len_max + limits.column_len_max && limits.cell_len_max <= 1 << 20 {
        let column = limits.cell_len_max - limits.row_len_max;
        let row = limits.cell_len_max - limits.column_len_max;
        cells.push(cell(name(limits.row_len_max), name(column)));
        cells.push(cell(name(row), name(limits.column_len_max)));
    }
    cells.sort_unstable();
    cells.dedup();
    store.put_versions(&t, cells.iter().map(|cell| (cell.clone(), value(1, "v"))).collect()).await.expect("they fit");
    assert!(cells_of(store, &t, everything()).await == cells, "they are kept");
}

/// Lengths over the stated limits fail with `TooLarge` in every writing operation, before anything is written.
pub async fn lengths_over_the_limits_are_refused(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    let limits = store.capabilities().limits;
    let over = |limit: usize| (limit < LEN_MAX).then(|| Bytes::from(vec![0; limit + 1]));
    let fine = bytes("fine");
    let mut offences = Vec::new();
    offences.extend(over(limits.row_len_max).map(|row| (Cell::new(row, "c"), fine.clone())));
    offences.extend(over(limits.column_len_max).map(|column| (Cell::new("r", column), fine.clone())));
    if limits.cell_len_max < limits.row_len_max + limits.column_len_max {
        let row = Bytes::from(vec![0; limits.row_len_max]);
        let column = over(limits.cell_len_max - limits.row_len_max);
        offences.extend(column.map(|column| (Cell::new(row, column), fine.clone())));
    }
    for (cell, _) in &offences {
        assert_fails!(store.add_sentinels(&t, &[Cell::new("a", "a"), cell.clone()]).await, KvsError::TooLarge { .. });
    }
    offences.extend(over(limits.value_len_max).map(|value| (Cell::new("r", "c"), value)));
    for (long, content) in &offences {
        let good = (cell("a", "a"), fine.clone());
        let puts = vec![(t.clone(), vec![good.clone(), (long.clone(), content.clone())])];
        assert_fails!(store.put(puts, ts(1)).await, KvsError::TooLarge { len, limit, .. } if len == limit + 1);
        let timed = |(cell, bytes)| (cell, atlas_kvs::Value { ts: ts(1), bytes });
        let versions = vec![timed(good.clone()), timed((long.clone(), content.clone()))];
        assert_fails!(store.put_versions(&t, versions).await, KvsError::TooLarge { .. });
        assert_fails!(store.put_unless_exists(&a, long, content.clone()).await, KvsError::TooLarge { .. });
        assert_fails!(store.check_and_set(&a, long, None, Some(content.clone())).await, KvsError::TooLarge { .. });
        if store.capabilities().atomic_batch {
            let set = |cell: &Cell, value: &Bytes| BatchOp::Set {
                table: a.clone(),
                cell: cell.clone(),
                value: value.clone(),
            };
            let batch = vec![set(&good.0, &good.1), set(long, content)];
            assert_fails!(apply(store, batch).await, KvsError::TooLarge { .. });
        }
    }
    assert_eq!(stored(store, &t).await, [""; 0]);
    assert_eq!(stored_atomic(store, &a).await, [""; 0]);
}

async fn cells_of(store: &TestStore, table: &TableRef, request: Scan) -> Vec<Cell> {
    items(store.scan(table, request)).await.into_iter().map(|(cell, _)| cell).collect()
}
