//! The examples do what they say.

// Each is compiled as a program too, where its `main` is used.
#[allow(dead_code)]
#[path = "../examples/03_backup.rs"]
mod backup;
#[allow(dead_code)]
#[path = "../examples/01_hello.rs"]
mod hello;
#[allow(dead_code)]
#[path = "../examples/02_typed.rs"]
mod typed;

#[tokio::test]
async fn hello_greets() -> anyhow::Result<()> {
    hello::hello(tempfile::tempdir()?.path()).await
}

#[tokio::test]
async fn typed_tables_hold_accounts() -> anyhow::Result<()> {
    typed::typed(tempfile::tempdir()?.path()).await
}

#[tokio::test]
async fn a_backup_comes_back() -> anyhow::Result<()> {
    backup::backup_and_restore(tempfile::tempdir()?.path()).await
}
