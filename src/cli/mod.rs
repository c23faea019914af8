//! The program `atlas`: what can be asked on a command line, and how it is answered.
//!
//! Standard output is the result, standard error everything else, the exit code the verdict. A command runs as one
//! future; Ctrl-C drops it, which releases what it holds, and the store is closed before the program ends.

mod args;
mod backend;
mod backup;
mod backup_lock;
mod config;
mod connect;
mod demo;
mod doctor;
mod import;
mod kv;
mod output;
mod progress;
mod retry;
mod serve;
mod shell;
mod status;
mod sweep;
mod table;
#[cfg(test)]
pub(crate) mod testing;
mod timestamp;
mod timestamp_file;
mod workload;

use crate::config::{Environment, Loaded, LogLevel, Sources};
use crate::ops::{Connection, Operations};
use crate::{Error, Result, exit};
use args::{Cli, Color, Command, Format, Globals, LogFormat};
use atlas_kvs::KvsError;
use backend::{Backend, Stores};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use output::{Failure, Outcome, Output};
use parking_lot::Mutex;
use progress::Reporter;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a store may take to close, and threads that are stuck to end.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// How long a server may take to undo what was interrupted, and how often it is asked.
const UNDONE_WITHIN: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(100);
const THREADS_END_WITHIN: Duration = Duration::from_secs(1);

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    // Whatever the store writes, RocksDB's own files too, is for its user only.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    arm_fail_points();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(refuse(&arguments, &error)),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: starting threads: {error}"));
            return ExitCode::from(exit::FAILURE);
        }
    };
    let quiet = cli.globals.quiet;
    let stores = Stores::new(format!("atlas {}", cli.command.words()), move |text| {
        if !quiet {
            say(text);
        }
    });
    let context = Context::new(&cli, Arc::new(stores), Environment::of_process());
    let format = cli.globals.output.unwrap_or(match std::io::stdout().is_terminal() {
        true => Format::Table,
        false => Format::Plain,
    });
    let out = Box::new(std::io::BufWriter::with_capacity(1 << 16, std::io::stdout()));
    let mut output = Output::new(format, cli.command.words(), out);
    context.start_log(&cli.command);
    let code = runtime.block_on(execute(cli.command, &context, &mut output));
    // A thread may hang in a read of standard input for ever.
    runtime.shutdown_timeout(THREADS_END_WITHIN);
    ExitCode::from(code)
}

/// In a program built for tests: does at fail points what the environment says. `FAILPOINTS` is read as the crate `fail`
/// does; `ATLAS_KILL_AT=POINT` or `POINT:N` kills this process when it gets there for the Nth time.
fn arm_fail_points() {
    if !fail::has_failpoints() {
        return;
    }
    // Kept for the life of the process: its end would disarm them.
    std::mem::forget(fail::FailScenario::setup());
    let Ok(wanted) = std::env::var("ATLAS_KILL_AT") else { return };
    let (point, hits) = match wanted.rsplit_once(':').and_then(|(point, n)| Some((point, n.parse().ok()?))) {
        Some((point, hits)) => (point.to_owned(), hits),
        None => (wanted, 1),
    };
    let left = AtomicUsize::new(hits);
    let armed = fail::cfg_callback(point, move || {
        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::thread::park();
        }
    });
    if let Err(reason) = armed {
        say(&format!("warning: ATLAS_KILL_AT: {reason}"));
    }
}

/// Answers what clap did not accept, and what it answers itself.
fn refuse(arguments: &[OsString], error: &clap::Error) -> u8 {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Whoever closed the pipe has read enough.
        let _ = error.print();
        return exit::OK;
    }
    let words: Vec<&str> = arguments.iter().skip(1).map(|argument| argument.to_str().unwrap_or_default()).collect();
    let wants_json = words.windows(2).any(|pair| matches!(pair, ["-o" | "--output", "json"]))
        || words.iter().any(|word| matches!(*word, "-ojson" | "-o=json" | "--output=json"));
    if wants_json {
        let words = subcommands_in(&words);
        let message = error.render().to_string();
        let message = message.trim().strip_prefix("error: ").unwrap_or(message.trim()).to_owned();
        let _ = writeln!(std::io::stdout(), "{}", output::usage_envelope(&words, &message));
    } else {
        let _ = error.print();
    }
    exit::USAGE
}

/// The command in a line that could not be parsed, as far as it can be told.
fn subcommands_in(arguments: &[&str]) -> String {
    let root = Cli::command();
    let mut command = &root;
    let mut words = Vec::new();
    for argument in arguments {
        if let Some(below) = command.find_subcommand(argument) {
            words.push(*argument);
            command = below;
        }
    }
    words.join(" ")
}

/// What every command has at hand.
pub(crate) struct Context {
    globals: Globals,
    words: &'static str,
    backend: Arc<dyn Backend>,
    sources: Sources,
    loaded: OnceLock<Loaded>,
    opened: Mutex<Vec<Arc<dyn Operations>>>,
    /// Where a backup is under way, which a server undoes when we are interrupted.
    undoing: Mutex<Option<Arc<dyn Operations>>>,
    /// The configuration that --into names.
    target: OnceLock<PathBuf>,
    /// Cancelled when the program was asked to end and the command ends by itself.
    shutdown: CancellationToken,
    /// Whether somebody can answer a question.
    is_interactive: bool,
}

impl Context {
    fn new(cli: &Cli, backend: Arc<dyn Backend>, environment: Environment) -> Context {
        let globals = cli.globals.clone();
        let mut flags = Vec::new();
        if let Some(namespace) = &globals.namespace {
            flags.push(("namespace", namespace.clone(), "--namespace"));
        }
        if let Command::Serve(args) = &cli.command {
            flags.extend(args.http.iter().map(|address| ("server.http", address.clone(), "--http")));
            flags.extend(args.grpc.iter().map(|address| ("server.grpc", address.clone(), "--grpc")));
        }
        let sources = Sources {
            file: globals.config.clone(),
            root: globals.config_root.clone(),
            environment,
            alone: false,
            set: globals.set.clone(),
            flags,
        };
        Context {
            globals,
            words: cli.command.words(),
            backend,
            sources,
            loaded: OnceLock::new(),
            opened: Mutex::default(),
            undoing: Mutex::default(),
            target: OnceLock::new(),
            shutdown: CancellationToken::new(),
            is_interactive: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
        }
    }

    /// The configuration, read when it is first asked for: some commands work without one.
    fn config(&self) -> Result<&Loaded> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let loaded = crate::config::load(&self.sources)?;
        Ok(self.loaded.get_or_init(|| loaded))
    }

    fn reporter(&self) -> Reporter {
        Reporter::new(self.globals.no_progress || self.globals.quiet, self.words)
    }

    /// Says something to people, unless they want quiet.
    fn note(&self, text: &str) {
        if !self.globals.quiet {
            say(text);
        }
    }

    fn keep_until_the_end(&self, operations: Arc<dyn Operations>) {
        self.opened.lock().push(operations);
    }

    /// Remembers the configuration file that --into names, for messages.
    fn target<T>(&self, file: &Path, loaded: T) -> T {
        let _ = self.target.set(file.to_owned());
        loaded
    }

    /// While the answer is not told to forget it, an interrupted program waits until the backup is undone.
    fn undone_on_signal(&self, operations: Arc<dyn Operations>) -> Undoing<'_> {
        *self.undoing.lock() = Some(operations);
        Undoing(self)
    }

    /// Waits until no backup holds the lock any more: the server gives it back when it has removed everything else.
    async fn until_undone(&self) {
        let Some(operations) = self.undoing.lock().take() else { return };
        if !matches!(operations.connection(), Connection::Remote { .. }) {
            // Closing the store waits for it.
            return;
        }
        let waiting = async {
            // The server hears of our end after a moment only, and may be about to take the lock.
            let mut free = 0;
            while free < 2 {
                tokio::time::sleep(ASK_EVERY).await;
                match operations.backup_lock_status().await {
                    Ok(Some(record)) if record.renewal.is_some() => free = 0,
                    Ok(_) => free += 1,
                    Err(_) => return,
                }
            }
        };
        if tokio::time::timeout(UNDONE_WITHIN, waiting).await.is_err() {
            say("warning: the server has not ended the backup yet; see `atlas backup-lock --status`");
        }
    }

    /// The file that a hint means by CONFIG.
    fn named(&self, hint: String) -> String {
        let file = self.target.get().or_else(|| self.loaded.get().and_then(|loaded| loaded.file.as_ref()));
        match file {
            Some(file) => hint.replace("--into CONFIG", &format!("--into {}", file.display())),
            None => hint,
        }
    }

    async fn close(&self) {
        let opened = std::mem::take(&mut *self.opened.lock());
        for operations in opened {
            match tokio::time::timeout(CLOSE_WITHIN, operations.close()).await {
                // The demo closes its stores itself; this is for when it is interrupted.
                Ok(Ok(()) | Err(Error::Kvs(KvsError::Closed))) => {}
                Ok(Err(error)) => say(&format!("warning: closing the store: {error}")),
                Err(_) => say(&format!("warning: the store did not close within {} s", CLOSE_WITHIN.as_secs())),
            }
        }
    }

    fn start_log(&self, command: &Command) {
        use tracing_subscriber::EnvFilter;
        let usual = match command {
            // A wrong configuration is told by the command itself.
            Command::Serve(_) => self.config().map_or(LogLevel::Info, |loaded| loaded.runtime.log_level),
            _ => LogLevel::Warn,
        };
        let level = match (self.globals.quiet, self.globals.verbose) {
            (true, _) => LogLevel::Error,
            (_, 0) => usual,
            (_, 1) => LogLevel::Info,
            (_, 2) => LogLevel::Debug,
            _ => LogLevel::Trace,
        };
        let mut level = format!("{level:?}").to_lowercase();
        if self.globals.verbose == 0 && !matches!(command, Command::Serve(_)) {
            // The driver tells each attempt in several lines. What matters of it is in the error that the command prints.
            level.push_str(",scylla=off");
        }
        let filter = match std::env::var("ATLAS_LOG") {
            Ok(directives) if !directives.is_empty() => EnvFilter::try_new(&directives).unwrap_or_else(|error| {
                say(&format!("warning: ATLAS_LOG='{directives}' is not understood: {error}"));
                EnvFilter::new(&level)
            }),
            _ => EnvFilter::new(&level),
        };
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(use_color(self.globals.color));
        // Fails only if a log was started before, which is then the one to use.
        let _ = match self.globals.log_format {
            LogFormat::Text => builder.try_init(),
            LogFormat::Json => builder.json().try_init(),
        };
    }
}

/// A backup under way that has to be undone if the program is interrupted.
struct Undoing<'a>(&'a Context);

impl Undoing<'_> {
    /// It is over.
    fn forget(self) {
        *self.0.undoing.lock() = None;
    }
}

fn use_color(color: Color) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto if is_set("NO_COLOR") => false,
        Color::Auto if std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
        Color::Auto => std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
    }
}

/// Writes a line to standard error. Whoever closed it does not want to know.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Signals> {
        let listen = |kind| signal(kind).map_err(|error| Error::io("listening to signals", error));
        Ok(Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// The exit code of the next signal.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => exit::INTERRUPTED,
            _ = self.terminate.recv() => exit::TERMINATED,
        }
    }
}

enum Ending {
    Result(Outcome),
    Signal(u8),
}

/// Runs a command to its end or to a signal, closes what it opened, prints the result. Answers the exit code.
async fn execute(command: Command, context: &Context, output: &mut Output) -> u8 {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return conclude(Ending::Result(Err(error.into())), context, output),
    };
    let mut ends_by_itself = matches!(command, Command::Serve(_));
    let ending = {
        let work = dispatch(command, context, output);
        tokio::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => break Ending::Result(result),
                code = signals.next() => {
                    if !ends_by_itself {
                        break Ending::Signal(code);
                    }
                    // Asked a second time, it ends as any other command.
                    ends_by_itself = false;
                    context.shutdown.cancel();
                }
            }
        }
    };
    if matches!(ending, Ending::Signal(_)) {
        tokio::select! {
            () = context.until_undone() => {}
            code = signals.next() => return code,
        }
    }
    tokio::select! {
        () = context.close() => {}
        code = signals.next() => return code,
    }
    conclude(ending, context, output)
}

async fn dispatch(command: Command, context: &Context, output: &mut Output) -> Outcome {
    match command {
        Command::Timestamp(args) => Ok(timestamp::run(args, context).await?),
        Command::BackupLock(args) => Ok(backup_lock::run(args, context).await?),
        Command::Table(command) => Ok(table::run(command, context).await?),
        Command::Kv(command) => Ok(kv::run(command, context, output).await?),
        Command::Import(args) => import::run(args, context).await,
        Command::Backup(command) => Ok(backup::run(command, context).await?),
        Command::Sweep(args) => Ok(sweep::run(args, context).await?),
        Command::ReadPunchTable(args) => Ok(timestamp::read_punch_table(&args, context).await?),
        Command::Serve(args) => Ok(serve::run(&args, context, output).await?),
        Command::Status => Ok(status::run(context).await?),
        Command::Doctor(args) => Ok(doctor::run(args, context).await?),
        Command::Config(command) => Ok(config::run(command, context)?),
        Command::Demo(args) => demo::run(args, context).await,
        Command::Workload(command) => Ok(workload::run(command, context).await?),
        Command::Completions { shell } => Ok(shell::completions(shell)),
        Command::Man { dir } => Ok(shell::man(dir.as_deref())?),
        Command::Version => Ok(shell::version()),
    }
}

/// Prints how it ended and answers the exit code.
fn conclude(ending: Ending, context: &Context, output: &mut Output) -> u8 {
    let (printed, code) = match ending {
        Ending::Result(Ok(reply)) => {
            for warning in &reply.warnings {
                context.note(&format!("warning: {warning}"));
            }
            if let Some(note) = reply.note.as_ref().filter(|_| output.format() == Format::Plain) {
                context.note(note);
            }
            let printed = output.reply(&reply);
            let verdict = reply.verdict.filter(|_| printed.is_ok());
            if let Some(verdict) = verdict.as_ref().filter(|_| output.format() != Format::Json) {
                say(&format!("error: {}", verdict.message));
            }
            (printed, verdict.map_or(exit::OK, |verdict| verdict.exit_code))
        }
        Ending::Result(Err(mut failure)) => {
            if let Error::Refused { hint, .. } = &mut failure.error {
                *hint = context.named(std::mem::take(hint));
            }
            conclude_failure(&failure, failure.error.exit_code(), context, output)
        }
        Ending::Signal(code) => conclude_failure(&Error::Interrupted.into(), code, context, output),
    };
    match printed {
        // Whoever read us has enough: that is success.
        _ if output.pipe_is_broken() => exit::OK,
        Ok(()) => code,
        Err(error) => {
            say(&format!("error: {error}"));
            error.exit_code()
        }
    }
}

fn conclude_failure(failure: &Failure, code: u8, context: &Context, output: &mut Output) -> (Result<()>, u8) {
    if output.pipe_is_broken() {
        return (Ok(()), exit::OK);
    }
    if output.format() != Format::Json {
        let label = match use_color(context.globals.color) {
            true => "\x1b[1;31merror:\x1b[0m",
            false => "error:",
        };
        say(&format!("{label} {}", failure.error));
        if let Some(note) = &failure.note {
            say(&format!("  note: {note}"));
        }
        if let Some(hint) = failure.error.hint() {
            say(&format!("  hint: {hint}"));
        }
    }
    (output.failure(failure), code)
}

#[cfg(test)]
mod tests;
