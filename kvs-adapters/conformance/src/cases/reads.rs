//! Reading cells: `get` and `versions`.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{CellBound, Timestamp, Version};

/// `read_before` is exclusive: a version at the bound is not seen, one just below it is.
pub async fn bound_is_exclusive(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 5, "v")]).await;
    assert_eq!(get(store, &t, &[("r", "c", 5), ("r", "c", 6)]).await, ["none", "5=v"]);
}

/// Of several versions the newest below the bound is seen, whatever the order they were written in.
pub async fn newest_version_below_the_bound_is_seen(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 7, "seven"), ("r", "c", 3, "three")]).await;
    put(store, &t, &[("r", "c", 5, "five")]).await;
    let seen = get(store, &t, &[3, 4, 5, 6, 7, 8, 1_000].map(|before| ("r", "c", before))).await;
    assert_eq!(seen, ["none", "3=three", "3=three", "5=five", "5=five", "7=seven", "7=seven"]);
}

/// The whole range of timestamps can be written and read, in numeric order.
pub async fn extreme_timestamps_keep_their_order(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let numbers =
        [1, 0x7f, 0x80, 0xff, 0x100, 0xffff_ffff, 0x1_0000_0000, Timestamp::MAX.get() - 2, Timestamp::MAX.get() - 1];
    for number in numbers {
        put(store, &t, &[("r", "c", number, &number.to_string())]).await;
    }
    for (older, newer) in numbers.iter().zip(&numbers[1..]) {
        assert_eq!(get(store, &t, &[("r", "c", *newer)]).await, [format!("{older}={older}")]);
    }
    let last = numbers[numbers.len() - 1];
    assert_eq!(get(store, &t, &[("r", "c", Timestamp::MAX.get())]).await, [format!("{last}={last}")]);
}

/// Answers come in the order of the questions, absent cells as `None` among them.
pub async fn answers_come_in_the_order_given(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("a", "x", 1, "ax"), ("a", "y", 1, "ay"), ("b", "x", 1, "bx")]).await;
    let seen = get(store, &t, &[("b", "x", 9), ("a", "z", 9), ("a", "y", 9), ("0", "0", 9), ("a", "x", 9)]).await;
    assert_eq!(seen, ["1=bx", "none", "1=ay", "none", "1=ax"]);
}

/// A cell may be asked for more than once, with the same bound or another.
pub async fn cell_may_be_asked_for_twice(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 1, "one"), ("r", "c", 2, "two")]).await;
    let seen = get(store, &t, &[("r", "c", 3), ("r", "c", 2), ("r", "c", 3), ("r", "c", 1)]).await;
    assert_eq!(seen, ["2=two", "1=one", "2=two", "none"]);
}

/// The sentinel counts as a version, below all others.
pub async fn sentinel_is_a_version(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 5, "v")]).await;
    store.add_sentinels(&t, &[cell("r", "c"), cell("r", "d")]).await.expect("sentinels can be added");
    assert_eq!(get(store, &t, &[("r", "c", 6), ("r", "c", 5), ("r", "c", 1)]).await, ["5=v", "0=", "0="]);
    assert_eq!(get(store, &t, &[("r", "d", 6)]).await, ["0="]);
}

/// Nothing is below zero, not even the sentinel.
pub async fn nothing_is_below_zero(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 1, "v")]).await;
    store.add_sentinels(&t, &[cell("r", "c")]).await.expect("sentinels can be added");
    assert_eq!(get(store, &t, &[("r", "c", 0)]).await, ["none"]);
    assert_eq!(store.versions(&t, &bounds(&[("r", "c", 0)])).await.expect("versions can be read"), [vec![]]);
}

/// An empty value is a value.
pub async fn empty_value_is_a_value(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 1, "v"), ("r", "c", 2, "")]).await;
    assert_eq!(get(store, &t, &[("r", "c", 3)]).await, ["2="]);
}

/// A cell may have many versions, each of which can be read.
pub async fn many_versions_of_one_cell_can_be_read(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let versions = (1..=500).map(|number| (cell("r", "c"), value(number * 2, number.to_string())));
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    let asked: Vec<_> = (1..=1_002).map(|before| CellBound::new(cell("r", "c"), ts(before))).collect();
    let seen = store.get(&t, &asked).await.expect("cells can be read");
    for (bound, seen) in asked.iter().zip(seen) {
        let newest = (bound.read_before.get() - 1) / 2;
        let expected = (newest > 0).then(|| value(newest * 2, newest.to_string()));
        assert_eq!(seen, expected, "below {}", bound.read_before);
    }
}

/// Thousands of cells may be asked for at once.
pub async fn many_cells_can_be_read_at_once(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let name = |number: u64| cell(format!("{:02}", number % 50), format!("{number:04}"));
    let versions = (0..2_000).map(|number| (name(number), value(number + 1, number.to_string())));
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    let asked: Vec<_> = (0..4_000).rev().map(|number| CellBound::new(name(number), Timestamp::MAX)).collect();
    let seen = store.get(&t, &asked).await.expect("cells can be read");
    let expected: Vec<_> =
        (0..4_000).rev().map(|number| (number < 2_000).then(|| value(number + 1, number.to_string()))).collect();
    assert_eq!(seen, expected);
}

/// `versions` shows all versions below the bound, the sentinel included, oldest first, in the order asked for.
pub async fn versions_are_all_below_the_bound(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 9, ""), ("r", "c", 3, ""), ("r", "c", 5, ""), ("r", "d", 4, ""), ("q", "c", 1, "")])
        .await;
    store.add_sentinels(&t, &[cell("r", "c")]).await.expect("sentinels can be added");
    let asked = bounds(&[("r", "d", 9), ("r", "c", 9), ("x", "x", 9), ("r", "c", 1_000), ("r", "c", 1), ("r", "d", 4)]);
    let seen = store.versions(&t, &asked).await.expect("versions can be read");
    let numbers: Vec<Vec<u64>> = seen.iter().map(|of| of.iter().map(|version| version.ts.get()).collect()).collect();
    assert_eq!(numbers, [vec![4], vec![0, 3, 5], vec![], vec![0, 3, 5, 9], vec![0], vec![]]);
}

/// A version tells its length and the first sixteen bytes of its content.
pub async fn versions_tell_length_and_prefix(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let content: Vec<u8> = (0..100_000).map(|byte| (byte % 251) as u8).collect();
    let lengths = [0, 1, 15, 16, 17, 100_000];
    let versions = lengths.iter().map(|&len| (cell("r", "c"), value(len as u64 + 1, &content[..len])));
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    let seen = store.versions(&t, &bounds(&[("r", "c", 1_000_000)])).await.expect("versions can be read");
    let expected = lengths.map(|len| Version {
        ts: ts(len as u64 + 1),
        len: len as u64,
        prefix: bytes(&content[..len.min(Version::PREFIX_LEN)]),
    });
    assert_eq!(seen, [expected]);
}
