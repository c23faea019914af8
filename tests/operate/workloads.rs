//! `atlas workload`: a run, and what is said of its history.

use serde_json::Value;

#[test]
fn a_run_is_judged_and_a_history_that_lies_is_found_out() {
    let stage = crate::stage();
    let run =
        stage.atlas("workload run bank --tasks 4 --commits 60 --seconds 60 --seed 3 --history bank.jsonl -o json");
    assert!(run.document()["data"]["committed"].as_u64().unwrap() >= 60, "{run:#?}");
    let judged = stage.atlas("workload check bank.jsonl --min-commits 60 -o json").document();
    assert_eq!(judged["data"]["anomalies"], Value::Array(Vec::new()), "{judged}");
    assert!(judged["data"]["reads_checked"].as_u64().unwrap() > 0, "{judged}");
    assert_eq!(judged["data"]["second_opinion"], Value::Null);
    assert_eq!(stage.atlas("workload check bank.jsonl").ok(), "no anomaly");
    // More than there was proves nothing, and is said.
    stage.atlas("workload check bank.jsonl --min-commits 1000000").fails(7);
    stage.atlas("workload check bank.jsonl --min-faults 1").fails(7);
    // Its tables are gone.
    assert_eq!(stage.atlas("table list").ok(), "");

    // One that was aborted calls itself committed, or a commit is forgotten: whoever read it tells.
    let history = std::fs::read_to_string(stage.path("bank.jsonl")).unwrap();
    let lie = history.replacen("\"status\":\"committed\"", "\"status\":\"aborted\"", 3);
    stage.write("lie.jsonl", &lie);
    let found = stage.atlas("workload check lie.jsonl");
    found.fails(7).says("anomalies in lie.jsonl");
    assert!(found.stdout.contains("aborted-read"), "{found:#?}");
    let found = stage.atlas("workload check lie.jsonl -o json");
    let document: Value = serde_json::from_str(&found.stdout).unwrap();
    assert!(document["data"]["anomalies"][0]["picture"].as_str().unwrap().lines().count() > 2, "{document}");

    stage.write("torn.jsonl", &history[..history.len() / 2]);
    stage.atlas("workload check torn.jsonl").fails(7);
    stage.atlas("workload check nowhere.jsonl").fails(4);
    stage.atlas("workload run unheard-of").fails(2);
}

#[test]
fn lists_are_judged_by_a_second_checker_too() {
    let stage = crate::stage();
    stage.atlas("workload run append --tasks 4 --commits 60 --seconds 60 --history append.jsonl --serializable").ok();
    let judged = stage.atlas("workload check append.jsonl -o json").document();
    let second = &judged["data"]["second_opinion"];
    assert_eq!((second["verdict"].as_str(), second["model"].as_str()), (Some("holds"), Some("strict-serializable")));
    let history = std::fs::read_to_string(stage.path("append.jsonl")).unwrap();
    stage.write("lie.jsonl", &history.replacen("\"status\":\"committed\"", "\"status\":\"aborted\"", 3));
    stage.atlas("workload check lie.jsonl").fails(7).says("anomalies in lie.jsonl");
}
