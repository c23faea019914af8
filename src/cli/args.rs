//! The command line as clap sees it. Nothing is decided here; each family of commands checks what spans arguments.

use super::timestamp_file;
use crate::config::{ByteSize, duration_text};
use crate::schema::{ConflictHandler, SweepStrategy};
use crate::workload::Kind;
use atlas_kvs::{TableRef, Timestamp};
use bytes::Bytes;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Transactions with live, consistent backup and proven restore over key-value stores that have none.
#[derive(Parser, Debug)]
#[command(name = "atlas", version, term_width = 100, propagate_version = false)]
#[command(after_help = "Examples:
  atlas demo                                   Watch the whole product work
  atlas table create accounts                  Make a table in ./data/atlas
  atlas kv put accounts alice balance 100      Write a cell in a transaction
  atlas backup create --to ./data/backups      Back up, while applications run

Exit codes: 0 done, 1 failed, 2 usage, 3 done in part, 4 not found, 5 conflict or lock held,
6 no answer, 7 damage, 8 configuration, 9 refused for safety, 10 doctor found failures,
11 permission, 12 store lost to another process, 130 interrupted, 143 terminated.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// Configuration file [default: the first of the usual places, or none]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Path of the block in the configuration file [default: /atlasdb]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config_root: Option<String>,
    /// Open the store in this process; ask no server
    #[arg(long, global = true)]
    pub(crate) offline: bool,
    /// Set a key of the configuration, as keyValueService.dataDir=/srv/atlas
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Namespace of the application's data
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Form of the result: table, json or plain [default: table on a terminal, else plain]
    #[arg(short, long, global = true, value_name = "FORM", hide_possible_values = true)]
    pub(crate) output: Option<Format>,
    /// Say nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log more; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Colours on standard error
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    /// Show no progress
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
    /// Ask no questions: the answer is yes
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
    /// Form of the log on standard error
    #[arg(long, global = true, value_name = "FORM", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

/// How a result is printed.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    // Not doc comments: clap would spread them over the help of every command.
    // For people.
    Table,
    // One document, on failure too.
    Json,
    // The bare value, for scripts.
    Plain,
}

#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Fetch timestamps; repair time after a restore by hand
    Timestamp(TimestampArgs),
    /// Hold, release or look at the backup lock
    BackupLock(BackupLockArgs),
    /// Make, list, describe, empty and remove tables
    #[command(subcommand)]
    Table(TableCommand),
    /// Read and write cells, each command in one transaction
    #[command(subcommand)]
    Kv(KvCommand),
    /// Load CSV or JSON lines into a table
    Import(ImportArgs),
    /// Take, list, check and restore backups
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Remove old versions now; look at, pause and resume what is done by itself
    Sweep(SweepArgs),
    /// Find the timestamp that was issued at a wall-clock time
    ReadPunchTable(ReadPunchTableArgs),
    /// Own the store and serve it to other processes
    Serve(ServeArgs),
    /// Show the owner, tables, timestamps, lock and last backup of a store
    #[command(after_help = "Examples:\n  atlas status\n  atlas status -o json\n  atlas status -c prod.yml")]
    Status,
    /// Check a store and say what to do about what is wrong
    Doctor(DoctorArgs),
    /// Show, check and write configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Prove on real data that a backup taken under load restores exactly
    Demo(DemoArgs),
    /// Put isolation to the test, and check what a run saw
    #[command(subcommand)]
    Workload(WorkloadCommand),
    /// Print the completion script of a shell
    #[command(after_help = "Examples:
  atlas completions bash > /etc/bash_completion.d/atlas
  atlas completions zsh > ~/.zfunc/_atlas")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them
    #[command(after_help = "Examples:\n  atlas man | man -l -\n  atlas man --dir /usr/local/share/man/man1")]
    Man {
        /// Write a page for each command into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print the version
    #[command(after_help = "Examples:\n  atlas version\n  atlas version -o json")]
    Version,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  atlas timestamp fetch --file backup/backup.timestamp
  atlas timestamp clean-transactions --file backup/backup.timestamp
  atlas timestamp fast-forward --file backup/fast-forward.timestamp

A timestamp file holds one decimal line. A missing file ends with exit code 4, any other content with 2.")]
pub(crate) struct TimestampArgs {
    /// File of one timestamp: written by fetch, read by the others
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The timestamp, in place of a file
    #[arg(short, long, global = true, value_name = "TS", value_parser = timestamp_file::parse_argument)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) timestamp: Option<Timestamp>,
    #[command(subcommand)]
    pub(crate) command: TimestampCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum TimestampCommand {
    /// Fetch a fresh timestamp
    #[command(after_help = "Examples:
  atlas timestamp fetch
  atlas timestamp fetch --file backup/backup.timestamp
  atlas timestamp fetch --immutable --date-time

With --file, nothing that a reader at the timestamp needs is removed for ten minutes.")]
    Fetch {
        /// Fetch the timestamp below which no transaction is open
        #[arg(short, long)]
        immutable: bool,
        /// Tell the wall-clock time of it too
        #[arg(short, long)]
        date_time: bool,
    },
    /// Roll back what committed at or above a timestamp, in a stopped store
    #[command(after_help = "Examples:
  atlas timestamp clean-transactions --file backup/backup.timestamp
  atlas timestamp clean-transactions -t 4711 --dry-run")]
    CleanTransactions {
        /// Count what would be rolled back, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Accepted and not needed: every entry is looked at
        #[arg(short, long, value_name = "TS", value_parser = timestamp_file::parse_argument)]
        start_timestamp: Option<Timestamp>,
        /// Accepted and not needed
        #[arg(long)]
        skip_start_timestamp_check: bool,
    },
    /// Let time go on above a timestamp, in a stopped store
    #[command(after_help = "Examples:
  atlas timestamp fast-forward --file backup/fast-forward.timestamp
  atlas timestamp fast-forward -t 4711

A timestamp in the past changes nothing, and that is said.")]
    FastForward {
        /// Allow a jump of more than 2^40, which uses up time for good
        #[arg(long)]
        allow_large_jump: bool,
    },
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("action").required(true).args(["acquire", "release", "status"]))]
#[command(after_help = "Examples:
  atlas backup-lock --acquire --reason 'copy by hand'
  atlas backup-lock --status
  atlas backup-lock --release

While it is held, nothing is physically removed: sweep waits, and drop, truncate, `sweep --all` and
`kv delete --hard` answer with exit code 5.")]
pub(crate) struct BackupLockArgs {
    /// Take the lock; it stays until it is released
    #[arg(long)]
    pub(crate) acquire: bool,
    /// Release the lock, unless a running backup renews it
    #[arg(long)]
    pub(crate) release: bool,
    /// Show who holds the lock
    #[arg(long)]
    pub(crate) status: bool,
    /// What it is taken for [default: user, host and process]
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["release", "status"])]
    pub(crate) reason: Option<String>,
}

#[derive(Subcommand, Debug)]
#[command(after_help = "Examples:
  atlas table create accounts
  atlas table list
  atlas table describe accounts --stats
  atlas table alter accounts --conflict-handler Serializable")]
pub(crate) enum TableCommand {
    /// Make a table
    #[command(after_help = "Examples:
  atlas table create accounts
  atlas table create counters --conflict-handler RetryOnWriteWriteCell --sweep-strategy Thorough

Conflict handlers: IgnoreAll, RetryOnWriteWrite (default), RetryOnWriteWriteCell, RetryOnValueChanged,
Serializable, SerializableCell, SerializableIndex, RetryOnWriteWriteMigration, SerializableLockLevelMigration.
Sweep strategies: Nothing, Conservative (default), Thorough.")]
    Create {
        /// Name: letters, digits, '_', '.' and '-'
        #[arg(value_parser = parse_table)]
        name: TableRef,
        /// What a transaction checks before it commits
        #[arg(long, value_name = "HANDLER", value_parser = parse_handler)]
        conflict_handler: Option<ConflictHandler>,
        /// What may be removed of old versions
        #[arg(long, value_name = "STRATEGY", value_parser = parse_strategy)]
        sweep_strategy: Option<SweepStrategy>,
    },
    /// Change what a table promises, while it is in use
    #[command(after_help = "Examples:
  atlas table alter accounts --conflict-handler Serializable
  atlas table alter counters --sweep-strategy Nothing

Transactions that use the table meanwhile are done anew.")]
    Alter {
        /// Its name
        #[arg(value_parser = parse_table)]
        name: TableRef,
        /// What a transaction checks before it commits
        #[arg(long, value_name = "HANDLER", value_parser = parse_handler, required_unless_present = "sweep_strategy")]
        conflict_handler: Option<ConflictHandler>,
        /// What may be removed of old versions
        #[arg(long, value_name = "STRATEGY", value_parser = parse_strategy)]
        sweep_strategy: Option<SweepStrategy>,
    },
    /// List the tables
    #[command(after_help = "Examples:\n  atlas table list\n  atlas table list --internal -o json")]
    List {
        /// The tables of atlas itself too
        #[arg(long)]
        internal: bool,
    },
    /// Show what a table promises and how large it is
    #[command(after_help = "Examples:\n  atlas table describe accounts\n  atlas table describe accounts --stats")]
    Describe {
        /// The table
        #[arg(value_parser = parse_table)]
        name: TableRef,
        /// Count cells and versions exactly, which reads the whole table
        #[arg(long)]
        stats: bool,
    },
    /// Remove a table and all its data
    #[command(after_help = "Examples:\n  atlas table drop accounts\n  atlas table drop accounts --yes")]
    Drop {
        /// The table
        #[arg(value_parser = parse_table)]
        name: TableRef,
    },
    /// Remove all data of a table
    #[command(after_help = "Examples:\n  atlas table truncate accounts\n  atlas table truncate accounts --yes")]
    Truncate {
        /// The table
        #[arg(value_parser = parse_table)]
        name: TableRef,
    },
}

/// The address of a cell.
#[derive(Args, Debug)]
pub(crate) struct CellArgs {
    /// The table
    #[arg(value_parser = parse_table)]
    pub(crate) table: TableRef,
    /// The row
    #[arg(allow_negative_numbers = true)]
    pub(crate) row: String,
    /// The column
    #[arg(allow_negative_numbers = true)]
    pub(crate) column: String,
}

#[derive(Subcommand, Debug)]
#[command(after_help = "Examples:
  atlas kv put accounts alice balance 100
  atlas kv get accounts alice balance
  atlas kv scan accounts --prefix a

Rows, columns and values are UTF-8 text, or hexadecimal digits with --hex.
Write -- before a value that starts with a dash and is no number.")]
pub(crate) enum KvCommand {
    /// Write a cell
    #[command(after_help = "Examples:
  atlas kv put accounts alice balance 100
  atlas kv put accounts --hex 616c696365 00ff cafe
  atlas kv put notes n1 text -- --not-an-option")]
    Put {
        #[command(flatten)]
        cell: CellArgs,
        /// The value
        #[arg(allow_negative_numbers = true)]
        value: String,
        /// Row, column and value are hexadecimal
        #[arg(long)]
        hex: bool,
    },
    /// Read a cell; exit code 4 if there is none
    #[command(after_help = "Examples:
  atlas kv get accounts alice balance
  atlas kv get accounts alice balance --at 4711
  atlas kv get accounts --hex 616c696365 00ff")]
    Get {
        #[command(flatten)]
        cell: CellArgs,
        /// Row, column and value are hexadecimal
        #[arg(long)]
        hex: bool,
        /// Read the state at a past timestamp: commits below it
        #[arg(long, value_name = "TS", value_parser = timestamp_file::parse_argument)]
        at: Option<Timestamp>,
    },
    /// Delete a cell; exit code 4 if there is none
    #[command(after_help = "Examples:
  atlas kv delete accounts alice balance
  atlas kv delete accounts --hex 616c696365 00ff
  atlas kv delete accounts alice balance --hard --yes

With --hard, no version of the cell is left in the store when the command ends; backups keep theirs.
Exit code 5 while the backup lock is held, 6 if a reader still needs what was there.")]
    Delete {
        #[command(flatten)]
        cell: CellArgs,
        /// Row and column are hexadecimal
        #[arg(long)]
        hex: bool,
        /// Remove every version for good, whether there is a value or not
        #[arg(long)]
        hard: bool,
        /// How long to wait for readers that may need what was there [default: 30s]
        #[arg(long, value_name = "DURATION", requires = "hard", value_parser = duration_text::parse)]
        wait: Option<Duration>,
    },
    /// Read the cells of a range of rows, in order
    #[command(after_help = "Examples:
  atlas kv scan accounts --prefix a --limit 10
  atlas kv scan accounts --start alice --end bob --reverse
  atlas kv scan accounts -o plain | cut -f1

Plain output is row, tab, column, tab, value, a cell a line; tab, line breaks and backslash
inside are written \\t, \\n, \\r and \\\\. What is not UTF-8 ends plain and JSON output with an
error; --hex prints everything.")]
    Scan(ScanArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ScanArgs {
    /// The table
    #[arg(value_parser = parse_table)]
    pub(crate) table: TableRef,
    /// Rows that start with this
    #[arg(long, value_name = "ROW", conflicts_with_all = ["start", "end"])]
    pub(crate) prefix: Option<String>,
    /// First row
    #[arg(long, value_name = "ROW")]
    pub(crate) start: Option<String>,
    /// First row that is left out
    #[arg(long, value_name = "ROW")]
    pub(crate) end: Option<String>,
    /// From the last cell to the first
    #[arg(long)]
    pub(crate) reverse: bool,
    /// At most this many cells
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Rows, columns and values are hexadecimal
    #[arg(long)]
    pub(crate) hex: bool,
    /// Read the state at a past timestamp: commits below it
    #[arg(long, value_name = "TS", value_parser = timestamp_file::parse_argument)]
    pub(crate) at: Option<Timestamp>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  atlas import --table airports airports.csv --create-table
  atlas import --table events events.jsonl --row-key id
  zcat big.csv.gz | atlas import --table big --format csv -

A malformed line ends the import: nothing of its batch is written, batches before it stay, and
it is said how many rows those are. Importing the same file again writes the same cells.")]
pub(crate) struct ImportArgs {
    /// CSV with a header line, or a JSON object a line; - for standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where to
    #[arg(long, value_name = "TABLE", value_parser = parse_table)]
    pub(crate) table: TableRef,
    /// Field that names the row [default: the first]; every other field is a column
    #[arg(long, value_name = "FIELD")]
    pub(crate) row_key: Option<String>,
    /// Rows in one transaction
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch: u32,
    /// Make the table if it is missing
    #[arg(long)]
    pub(crate) create_table: bool,
    /// What the file holds [default: by its name]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<ImportFormat>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImportFormat {
    // Comma-separated values with a header line.
    Csv,
    // A JSON object a line.
    Jsonl,
}

#[derive(Args, Debug)]
pub(crate) struct RepoArgs {
    /// Directory of the repository [default: backup.repository of the configuration]
    #[arg(long, value_name = "REPO")]
    pub(crate) repo: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
#[command(after_help = "Examples:
  atlas backup create --to ./data/backups
  atlas backup list
  atlas backup restore latest --into restored.yml")]
pub(crate) enum BackupCommand {
    /// Back up the store, while applications use it
    #[command(after_help = "Examples:
  atlas backup create --to ./data/backups
  atlas backup create --to /mnt/backups --name before-upgrade
  atlas backup create --portable
  atlas backup create --rate-limit 50MiB/s
  id=$(atlas backup create -o plain)")]
    Create {
        /// Directory of the repository [default: backup.repository of the configuration]
        #[arg(long, value_name = "REPO", visible_alias = "repo")]
        to: Option<PathBuf>,
        /// The id of the backup [default: made from the time]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Read it as a transaction does: slower, but it can be restored into any kind of store
        #[arg(long)]
        portable: bool,
        /// Most bytes to copy in a second, such as 50MiB/s; 0: no limit [default: backup.rateLimit of the configuration]
        #[arg(long, value_name = "RATE", value_parser = rate)]
        rate_limit: Option<ByteSize>,
    },
    /// List the backups of a repository, the newest first
    #[command(after_help = "Examples:\n  atlas backup list\n  atlas backup list --repo /mnt/backups -o json")]
    List(RepoArgs),
    /// Show one backup
    #[command(
        after_help = "Examples:\n  atlas backup show latest\n  atlas backup show before-upgrade --repo /mnt/backups"
    )]
    Show {
        /// The backup's id, or latest
        id: String,
        #[command(flatten)]
        repo: RepoArgs,
    },
    /// Read every byte of a backup and compare checksums; exit code 7 on damage
    #[command(
        after_help = "Examples:\n  atlas backup verify latest\n  atlas backup verify before-upgrade --repo /mnt/backups"
    )]
    Verify {
        /// The backup's id, or latest
        id: String,
        #[command(flatten)]
        repo: RepoArgs,
    },
    /// Fill an empty store with a backup
    #[command(after_help = "Examples:
  atlas backup restore latest --repo ./data/backups --into restored.yml
  atlas backup restore before-upgrade --into restored.yml
  atlas backup restore --resume --into restored.yml

The configuration named by --into is read alone: neither ATLAS__… variables nor --set change it.")]
    Restore {
        /// The backup's id, or latest
        #[arg(required_unless_present = "resume", conflicts_with = "resume")]
        id: Option<String>,
        #[command(flatten)]
        repo: RepoArgs,
        /// Configuration of the store to fill
        #[arg(long, value_name = "CONFIG", required_unless_present = "resume")]
        into: Option<PathBuf>,
        /// Finish a restore that was interrupted
        #[arg(long)]
        resume: bool,
    },
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  atlas sweep --all
  atlas sweep --table accounts --dry-run
  atlas sweep --table accounts --row 616c696365 --sleep 50
  atlas sweep status

While a process owns the store, it removes old versions by itself. This is for what was imported,
restored or left by a crash. Say one of --all, --namespace and --table. When it was interrupted, the
same command goes on where it was. Exit code 5 while the backup lock is held.")]
pub(crate) struct SweepArgs {
    /// Sweep every table; --namespace NAME does so if the store is of that namespace
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Sweep one table
    #[arg(short, long, value_name = "TABLE", value_parser = parse_table)]
    pub(crate) table: Option<TableRef>,
    /// First row, in hexadecimal [default: where an earlier run was interrupted, or the first]
    #[arg(short, long, value_name = "HEX", value_parser = parse_hex, requires = "table")]
    pub(crate) row: Option<Bytes>,
    /// Count what would be removed, and remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Milliseconds to rest between batches
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(crate) sleep: u64,
    /// Most versions to read for a batch
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) read_limit: u32,
    /// About how many versions to remove in one call to the store
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) delete_batch_hint: u32,
    /// About how many cells to look at in a batch
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) candidate_batch_hint: u32,
    #[command(subcommand)]
    pub(crate) command: Option<SweepCommand>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum SweepCommand {
    /// Show how far behind sweep is, and why it stands still if it does
    #[command(after_help = "Examples:\n  atlas sweep status\n  atlas sweep status -o json")]
    Status,
    /// Let nothing be swept by itself until it is resumed, over restarts too
    #[command(after_help = "Examples:\n  atlas sweep pause\n  atlas sweep pause --reason 'the disks are busy'")]
    Pause {
        /// Why [default: user, host and process]
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Let sweep go on
    #[command(after_help = "Examples:\n  atlas sweep resume")]
    Resume,
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("when").args(["epoch_ms", "date_time"]))]
#[command(after_help = "Examples:
  atlas read-punch-table
  atlas read-punch-table --date-time 2026-05-06T07:08:09Z
  atlas read-punch-table --date-time -2h
  atlas read-punch-table --epoch-ms 1778051289000

Prints the greatest timestamp that is known to have been issued at or before that time, which is
recorded once a minute; exit code 4 if none is. `atlas timestamp fetch --date-time` is the inverse.")]
pub(crate) struct ReadPunchTableArgs {
    /// The time, in milliseconds since 1970 [default: now]
    #[arg(short, long, visible_alias = "epoch", value_name = "N", allow_negative_numbers = true)]
    pub(crate) epoch_ms: Option<i64>,
    /// The time, as 2026-05-06T07:08:09Z, or as -2h for two hours ago
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) date_time: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  atlas serve
  atlas serve --http 127.0.0.1:9000 --grpc off
  atlas serve -c prod.yml --log-format json
  atlas serve -c config/postgres.yml --standby --grpc 127.0.0.1:0 --http 127.0.0.1:0

Prints `ready` when it serves. Ends with exit code 0 when it was asked to stop and did, and with 12
when another process took its store over: start it again.")]
pub(crate) struct ServeArgs {
    /// Address of health, status and metrics, or off
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) http: Option<String>,
    /// Address of gRPC, or off
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) grpc: Option<String>,
    /// Wait while another process owns the store, and take over when it ends
    #[arg(long)]
    pub(crate) standby: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atlas doctor\n  atlas doctor --check all\n  atlas doctor -o json")]
pub(crate) struct DoctorArgs {
    /// Only this check; `all` adds those that read the whole store [default: the quick ones]
    #[arg(long, value_name = "NAME")]
    pub(crate) check: Vec<String>,
}

#[derive(Subcommand, Debug)]
#[command(after_help = "Examples:
  atlas config show --origin
  atlas config check -c prod.yml
  atlas config init")]
pub(crate) enum ConfigCommand {
    /// Print the configuration that holds
    #[command(after_help = "Examples:\n  atlas config show\n  atlas config show --origin\n  atlas config show -o json")]
    Show {
        /// Tell where each value came from
        #[arg(long)]
        origin: bool,
    },
    /// Check the configuration; exit code 8 if it is wrong
    #[command(after_help = "Examples:\n  atlas config check\n  atlas config check -c prod.yml")]
    Check,
    /// Write a configuration file with every key explained
    #[command(after_help = "Examples:\n  atlas config init\n  atlas config init prod.yml")]
    Init {
        /// Where to; a file that is there already is left alone
        #[arg(value_name = "PATH", default_value = "config/atlas.yml")]
        path: PathBuf,
    },
}

#[derive(Subcommand, Debug)]
#[command(after_help = "Examples:
  atlas workload list
  atlas workload run bank --seconds 10 --history bank.jsonl
  atlas workload check bank.jsonl")]
pub(crate) enum WorkloadCommand {
    /// List the workloads
    #[command(after_help = "Examples:\n  atlas workload list")]
    List,
    /// Run a workload, and write down what every attempt was told
    Run(WorkloadRunArgs),
    /// Judge a history by its timestamps and values alone
    Check(WorkloadCheckArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  atlas workload run bank
  atlas workload run write-skew --tasks 16 --seconds 30 --history skew.jsonl
  atlas workload run random --seed 7 --rate 500 --commits 10000 --history random.jsonl

The tables of a run are its own and are removed at its end. The workloads: atlas workload list.")]
pub(crate) struct WorkloadRunArgs {
    /// Which workload
    #[arg(value_name = "NAME", value_parser = parse_workload)]
    pub(crate) kind: Kind,
    /// How many clients work at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) tasks: u32,
    /// For how many seconds [default: 10, without --commits]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) seconds: Option<u64>,
    /// End after so many commits
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) commits: Option<u64>,
    /// Chooses the work of each client
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many pieces of work are begun in a second, by all clients together [default: as many as can be]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// Make all tables of the workload serializable
    #[arg(long)]
    pub(crate) serializable: bool,
    /// Write the history here: a line of JSON for each attempt
    #[arg(long, value_name = "FILE")]
    pub(crate) history: Option<PathBuf>,
    /// Leave the tables in the store
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  atlas workload check bank.jsonl
  atlas workload check skew.jsonl --serializable pairs
  atlas workload check random.jsonl --min-commits 1000 --min-conflicts 10

A history of the append workload is judged by a second checker as well, which others wrote.
Exit code 7 if anything is wrong.")]
pub(crate) struct WorkloadCheckArgs {
    /// The history
    #[arg(value_name = "HISTORY")]
    pub(crate) history: PathBuf,
    /// Judge this table as a serializable one, whatever the history says of it
    #[arg(long, value_name = "TABLE")]
    pub(crate) serializable: Vec<String>,
    /// Fewer commits prove nothing
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) min_commits: u64,
    /// Fewer conflicts prove nothing
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) min_conflicts: u64,
    /// Fewer injected faults prove nothing; for runs on a store that fails on purpose
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) min_faults: u64,
    /// Show at most so many of the anomalies that were found
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) show: usize,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  atlas demo
  atlas demo --seconds 20 --tasks 32
  atlas demo --dir /tmp/atlas-demo --keep
  atlas demo --config config/postgres.yml

With a server configured, the stores are two new namespaces there, which are removed in the end.
Exit code 0 only if the restored store is right in every cell; 7 if not.")]
pub(crate) struct DemoArgs {
    /// How long transactions run
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub(crate) seconds: u64,
    /// How many of them at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) tasks: u32,
    /// Where to work: a new or empty directory, or that of an earlier demo
    #[arg(long, value_name = "DIR", default_value = "./data/demo")]
    pub(crate) dir: PathBuf,
    /// Leave the restored store and the backup for a look
    #[arg(long)]
    pub(crate) keep: bool,
}

impl Command {
    /// The words of the command, as the envelope names it.
    pub(crate) fn words(&self) -> &'static str {
        match self {
            Command::Timestamp(args) => match args.command {
                TimestampCommand::Fetch { .. } => "timestamp fetch",
                TimestampCommand::CleanTransactions { .. } => "timestamp clean-transactions",
                TimestampCommand::FastForward { .. } => "timestamp fast-forward",
            },
            Command::BackupLock(_) => "backup-lock",
            Command::Table(command) => match command {
                TableCommand::Create { .. } => "table create",
                TableCommand::Alter { .. } => "table alter",
                TableCommand::List { .. } => "table list",
                TableCommand::Describe { .. } => "table describe",
                TableCommand::Drop { .. } => "table drop",
                TableCommand::Truncate { .. } => "table truncate",
            },
            Command::Kv(command) => match command {
                KvCommand::Put { .. } => "kv put",
                KvCommand::Get { .. } => "kv get",
                KvCommand::Delete { .. } => "kv delete",
                KvCommand::Scan(_) => "kv scan",
            },
            Command::Import(_) => "import",
            Command::Backup(command) => match command {
                BackupCommand::Create { .. } => "backup create",
                BackupCommand::List(_) => "backup list",
                BackupCommand::Show { .. } => "backup show",
                BackupCommand::Verify { .. } => "backup verify",
                BackupCommand::Restore { .. } => "backup restore",
            },
            Command::Sweep(args) => match args.command {
                None => "sweep",
                Some(SweepCommand::Status) => "sweep status",
                Some(SweepCommand::Pause { .. }) => "sweep pause",
                Some(SweepCommand::Resume) => "sweep resume",
            },
            Command::ReadPunchTable(_) => "read-punch-table",
            Command::Serve(_) => "serve",
            Command::Status => "status",
            Command::Doctor(_) => "doctor",
            Command::Config(command) => match command {
                ConfigCommand::Show { .. } => "config show",
                ConfigCommand::Check => "config check",
                ConfigCommand::Init { .. } => "config init",
            },
            Command::Demo(_) => "demo",
            Command::Workload(command) => match command {
                WorkloadCommand::List => "workload list",
                WorkloadCommand::Run(_) => "workload run",
                WorkloadCommand::Check(_) => "workload check",
            },
            Command::Completions { .. } => "completions",
            Command::Man { .. } => "man",
            Command::Version => "version",
        }
    }
}

/// `50MiB/s`, or a size.
fn rate(text: &str) -> Result<ByteSize, String> {
    text.strip_suffix("/s").unwrap_or(text).parse().map_err(|_| {
        format!("'{text}' is no rate: write bytes in a second as digits, or with KiB/s, MiB/s or GiB/s behind them")
    })
}

fn parse_table(name: &str) -> Result<TableRef, String> {
    TableRef::new(name).map_err(|error| error.to_string())
}

fn parse_hex(text: &str) -> Result<Bytes, String> {
    hex::decode(text).map(Bytes::from).map_err(|error| format!("this is not hexadecimal: {error}"))
}

fn parse_workload(name: &str) -> Result<Kind, String> {
    name.parse().map_err(|error: crate::Error| error.to_string())
}

fn parse_handler(name: &str) -> Result<ConflictHandler, String> {
    name.parse().map_err(|error: crate::Error| error.to_string())
}

fn parse_strategy(name: &str) -> Result<SweepStrategy, String> {
    name.parse().map_err(|error: crate::Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_lines_of_the_reference_parse() {
        let front = "atlas --config c.yml --config-root /atlasdb";
        for (rest, words) in [
            ("timestamp fetch --file b/backup.timestamp", "timestamp fetch"),
            ("backup-lock --acquire", "backup-lock"),
            ("timestamp fetch --file b/fast-forward.timestamp", "timestamp fetch"),
            ("backup-lock --release", "backup-lock"),
            ("timestamp clean-transactions --file b/backup.timestamp", "timestamp clean-transactions"),
            ("timestamp fast-forward --file b/fast-forward.timestamp", "timestamp fast-forward"),
        ] {
            for front in [front.to_owned(), format!("{front} --offline")] {
                let cli = parse(&format!("{front} {rest}")).expect(rest);
                assert_eq!(cli.command.words(), words);
                assert_eq!(cli.globals.config, Some("c.yml".into()));
                assert_eq!(cli.globals.config_root.as_deref(), Some("/atlasdb"));
            }
        }
    }

    #[test]
    fn file_and_timestamp_stand_on_either_side_of_the_verb() {
        for line in [
            "atlas timestamp -t 5 fast-forward",
            "atlas timestamp fast-forward -t 5",
            "atlas timestamp --timestamp 5 fast-forward",
            "atlas timestamp fast-forward --timestamp=5",
            "atlas --offline -c x.yml timestamp -t 5 clean-transactions",
            "atlas timestamp clean-transactions -t5 -s 9 --skip-start-timestamp-check -c x.yml",
        ] {
            let Command::Timestamp(args) = parse(line).expect(line).command else { panic!("{line}") };
            assert_eq!((args.timestamp, args.file), (Timestamp::new(5), None), "{line}");
        }
        for line in
            ["atlas timestamp -f x fast-forward", "atlas timestamp fetch -f x", "atlas timestamp fetch --file=x"]
        {
            let Command::Timestamp(args) = parse(line).expect(line).command else { panic!("{line}") };
            assert_eq!((args.timestamp, args.file), (None, Some("x".into())), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "atlas",
            "atlas nothing",
            "atlas sweep everything",
            "atlas sweep --all --row 00",
            "atlas sweep --table t --row 0",
            "atlas sweep --table bad/name",
            "atlas sweep --all --read-limit 0",
            "atlas sweep --all --sleep -1",
            "atlas kv delete t r c --wait 5s",
            "atlas kv delete t r c --hard --wait 5",
            "atlas read-punch-table --epoch-ms 5 --date-time -2h",
            "atlas read-punch-table --epoch-ms noon",
            "atlas backup-lock",
            "atlas backup-lock --acquire --release",
            "atlas backup-lock --status --reason x",
            "atlas timestamp",
            "atlas timestamp fast-forward -t -5",
            "atlas timestamp fast-forward -t 9223372036854775808",
            "atlas timestamp fast-forward -t 0",
            "atlas timestamp fast-forward -t 1e3",
            "atlas table create bad/name",
            "atlas table create x --conflict-handler Never",
            "atlas kv get t r",
            "atlas kv scan t --prefix a --start b",
            "atlas kv scan t --limit -1",
            "atlas import file.csv",
            "atlas import --table t f.csv --batch 0",
            "atlas backup restore latest",
            "atlas backup restore --into x",
            "atlas backup restore latest --resume --into x",
            "atlas demo --tasks 0",
            "atlas completions tcsh",
            "atlas status -q -v",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
    }

    #[test]
    fn the_command_lines_of_sweep_parse() {
        for (line, words) in [
            ("atlas sweep -a", "sweep"),
            ("atlas sweep -n demo", "sweep"),
            ("atlas -n demo sweep --dry-run", "sweep"),
            ("atlas sweep -t accounts -r 00ff --sleep 5 --read-limit 9 --delete-batch-hint 8", "sweep"),
            ("atlas sweep --all --candidate-batch-hint 7", "sweep"),
            ("atlas -n demo sweep status", "sweep status"),
            ("atlas sweep pause --reason busy", "sweep pause"),
            ("atlas sweep resume", "sweep resume"),
            ("atlas read-punch-table --epoch 5", "read-punch-table"),
            ("atlas read-punch-table -e -5", "read-punch-table"),
            ("atlas read-punch-table -d -2h", "read-punch-table"),
        ] {
            assert_eq!(parse(line).expect(line).command.words(), words);
        }
    }

    #[test]
    fn values_may_look_like_numbers_below_zero_and_options_after_two_dashes() {
        for (line, wanted) in [("atlas kv put t r c -5", "-5"), ("atlas kv put t r c -- --hex", "--hex")] {
            let Command::Kv(KvCommand::Put { value, hex, .. }) = parse(line).expect(line).command else {
                panic!("{line}")
            };
            assert_eq!((value.as_str(), hex), (wanted, false));
        }
        assert!(matches!(
            parse("atlas kv put t r c ff --hex").expect("flags may follow").command,
            Command::Kv(KvCommand::Put { hex: true, .. })
        ));
    }

    #[test]
    fn handlers_are_found_in_any_spelling() {
        for handler in ["RetryOnWriteWriteCell", "retry_on_write_write_cell", "RETRY-ON-WRITE-WRITE-CELL"] {
            let line = format!("atlas table create x --conflict-handler {handler}");
            let Command::Table(TableCommand::Create { conflict_handler, .. }) = parse(&line).expect(&line).command
            else {
                panic!("{line}")
            };
            assert_eq!(conflict_handler, Some(ConflictHandler::RetryOnWriteWriteCell));
        }
    }
}
