//! The demo must pass on a store that keeps its promises, and fail on one that breaks any of them.

use crate::cli::testing::{Answer, Damage, Stand};
use crate::exit;

async fn play(stand: &Stand, damage: Option<Damage>) -> Answer {
    *stand.backend.damage.lock() = damage;
    stand.run(&format!("demo --seconds 2 --tasks 8 --dir {} -o json -q", stand.path("demo"))).await
}

#[tokio::test]
async fn a_right_restore_passes_and_leaves_nothing() {
    let stand = Stand::new();
    let answer = play(&stand, None).await;
    assert_eq!(answer.code, 0, "{answer:?}");
    let document: serde_json::Value = serde_json::from_str(&answer.stdout).expect("one document");
    let data = &document["data"];
    assert_eq!(data["rows_loaded"], 3376 + 5366);
    assert_eq!(data["cells_compared"], 3376 * 6 + 5366 * 3);
    for key in ["commits", "commits_during_backup", "commits_after_backup_ts", "flights_booked"] {
        assert!(data[key].as_u64().is_some_and(|number| number > 0), "{key} in {data}");
    }
    assert!(!std::fs::exists(stand.path("demo")).expect("it can be looked for"));
}

#[tokio::test]
async fn every_damage_is_found() {
    let damages = [
        Damage::LoseCell,
        Damage::ChangeValue,
        Damage::AddCell,
        Damage::AddTable,
        Damage::KeepLaterCommits,
        Damage::TurnBackTime,
    ];
    let found = damages.map(async |damage| {
        let answer = play(&Stand::new(), Some(damage)).await;
        assert_eq!(answer.code, exit::DAMAGED, "{damage:?}: {answer:?}");
    });
    futures::future::join_all(found).await;
}

#[tokio::test]
async fn a_foreign_directory_is_refused() {
    let stand = Stand::new();
    stand.file("mine", "");
    let answer = stand.run(&format!("demo --dir {}", stand.dir.path().display())).await;
    assert_eq!(answer.code, exit::REFUSED);
    assert!(std::fs::exists(stand.path("mine")).expect("it can be looked for"));
}
