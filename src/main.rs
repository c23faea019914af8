//! The program `atlas`.

fn main() -> std::process::ExitCode {
    atlas::cli::main()
}
