//! What the program says, byte for byte: help, usage errors, and what needs no store.
//!
//! `TRYCMD=overwrite cargo test --test cli` writes down what it says now.

#[test]
fn the_program_says_what_is_written_down() {
    trycmd::TestCases::new().env("NO_COLOR", "1").env("HOME", "/nonexistent").case("tests/cli/*.trycmd").run();
}
