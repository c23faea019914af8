//! Files that should hold one timestamp.

#[test]
fn a_timestamp_file_holds_one_line_of_digits_or_is_refused() {
    let stage = crate::stage();
    stage.make_accounts();
    let before = stage.accounts();
    for (content, says) in [
        ("5\n6\n", "2 lines"),
        ("five\n", "decimal"),
        ("5 6\n", "decimal"),
        ("0x5\n", "decimal"),
        ("-5\n", "negative"),
        ("9223372036854775808\n", "at most"),
        ("99999999999999999999999999\n", "at most"),
        ("", "empty"),
        ("\n", "empty"),
        ("0\n", "start at"),
    ] {
        stage.write("ts", content);
        for command in ["clean-transactions", "fast-forward"] {
            stage.atlas(&format!("timestamp {command} --file ts")).fails(2).says(says).says("ts");
            let ran = stage.atlas(&format!("timestamp {command} --file ts -o json"));
            assert_eq!(ran.document()["error"]["code"], "USAGE");
        }
    }
    std::fs::write(stage.path("ts"), [0xff, 0xfe]).unwrap();
    stage.atlas("timestamp fast-forward --file ts").fails(2).says("not text");
    std::fs::write(stage.path("ts"), vec![b'1'; 1 << 20]).unwrap();
    stage.atlas("timestamp fast-forward --file ts").fails(2).says("more than");
    for line in ["timestamp fast-forward --file missing", "timestamp clean-transactions --file no/such/dir"] {
        stage.atlas(line).fails(4);
    }
    std::fs::create_dir(stage.path("a-directory")).unwrap();
    stage.atlas("timestamp fast-forward --file a-directory").fails(1);
    stage.atlas("timestamp fetch --file a-directory").fails(2).says("no regular file");
    stage.atlas("timestamp fetch --file ts/below").fails(1);
    assert_eq!(stage.accounts(), before, "nothing was changed");

    // A file is replaced as a whole, and a line without its end is a line.
    let ts = stage.atlas("timestamp fetch --file ts").ok();
    assert_eq!(std::fs::read_to_string(stage.path("ts")).unwrap(), format!("{ts}\n"));
    stage.write("ts", &ts);
    stage.atlas("timestamp fast-forward --file ts").ok();
}
