//! `atlas import`.

fn example(name: &str) -> String {
    crate::stage::checkout::file(&format!("examples/data/{name}"))
}

#[test]
fn the_examples_are_imported_whole() {
    let stage = crate::stage();
    let airports = example("airports.csv");
    let rows = std::fs::read_to_string(&airports).unwrap().lines().count() - 1;
    let import = format!("import --table airports {airports}");
    stage.atlas(&import).fails(4);
    stage.atlas("table create other").ok();
    stage.atlas(&import).fails(4).says("--create-table");
    assert_eq!(stage.atlas(&format!("{import} --create-table --batch 500")).ok(), rows.to_string());
    assert_eq!(stage.atlas("kv get airports 00M city").ok(), "Bay Springs");
    assert_eq!(stage.atlas("kv scan airports").ok().lines().count(), rows * 6);

    let server = stage.serve();
    let flights = example("flights-airport.csv");
    let ran = stage.atlas(&format!("import --table flights --create-table {flights} -o json"));
    let document = ran.document();
    assert_eq!(document["data"]["rows"], std::fs::read_to_string(&flights).unwrap().lines().count() - 1);
    // The same file again writes the same cells.
    let before = stage.atlas("kv scan airports").ok();
    assert_eq!(stage.atlas(&import).ok(), rows.to_string());
    assert_eq!(stage.atlas("kv scan airports").ok(), before);
    server.stop();
}

#[test]
fn json_lines_are_imported() {
    let stage = crate::stage();
    let lines = "{\"id\":\"a\",\"n\":1.50,\"deep\":{\"x\":[1]},\"none\":null,\"t\":true}\n\n{\"n\":2,\"id\":\"b\"}\n";
    stage.write("cells.jsonl", lines);
    stage.atlas("import --table t --create-table cells.jsonl").ok();
    assert_eq!(stage.atlas("kv scan t").ok(), "a\tdeep\t{\"x\":[1]}\na\tn\t1.50\na\tt\ttrue\nb\tn\t2");
    stage.bash("atlas --config atlas.yml import --table t --format jsonl --row-key k - <<< '{\"x\":\"1\",\"k\":\"piped\"}'").ok();
    assert_eq!(stage.atlas("kv get t piped x").ok(), "1");
}

#[test]
fn a_malformed_line_ends_the_import_and_it_is_said_how_far_it_came() {
    let stage = crate::stage();
    stage.atlas("table create t").ok();
    for (name, content, says) in [
        ("a.csv", "k,v\na,1\nb,2,3\n", "line 3"),
        ("b.csv", "k,v\na,1\n,2\n", "line 3"),
        ("c.csv", "k,k\na,1\n", "twice"),
        ("d.csv", "", "header"),
        ("e.jsonl", "{\"k\":\"a\",\"v\":1}\n{\"k\":\n", "line 2"),
        ("f.jsonl", "{\"k\":\"a\"}\n[1]\n", "line 2"),
        ("g.jsonl", "{\"k\":\"a\"}\n{\"v\":1}\n", "line 2"),
        ("h.jsonl", "{\"k\":\"a\",\"k\":\"b\"}\n", "twice"),
    ] {
        stage.write(name, content);
        stage.atlas(&format!("import --table t {name}")).fails(2).says(says).says(name).says("0 rows");
        let ran = stage.atlas(&format!("import --table t {name} -o json"));
        assert_eq!(ran.document()["error"]["details"]["rows_written"], 0, "{ran:#?}");
        assert_eq!(stage.atlas("kv scan t").ok(), "", "nothing of its batch is written");
    }
    // Batches before it stay.
    stage.write("late.csv", "k,v\na,1\nb,2\nc,3\nd\n");
    stage.atlas("import --table t late.csv --batch 2").fails(2).says("line 5").says("2 rows were written");
    assert_eq!(stage.atlas("kv scan t").ok(), "a\tv\t1\nb\tv\t2");
    std::fs::write(stage.path("bytes.csv"), b"k,v\na,\xff\n").unwrap();
    stage.atlas("import --table t bytes.csv").fails(2).says("line 2").says("UTF-8");
    stage.atlas("import --table t late.csv --row-key nope").fails(2).says("nope");
    stage.atlas("import --table t late.xyz").fails(2).says("--format");
    stage.atlas("import --table t missing.csv").fails(4);
    std::fs::create_dir(stage.path("a-directory")).unwrap();
    stage.atlas("import --table t a-directory --format csv").fails(2).says("directory");
    stage.atlas("import --table _transactions late.csv").fails(2);
}
