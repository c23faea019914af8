//! Waits that end: what a test started and that has got stuck is killed, and fails the test, instead of holding up all
//! others.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// No program of a test takes longer, however slow the machine is. The script that starts servers has more patience with
/// them, but not as much as that.
pub const STUCK_AFTER: Duration = Duration::from_secs(400);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Does what could wait for ever, and answers nothing if it does. It is left behind then, in its thread.
fn unless_stuck<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = channel();
    std::thread::spawn(move || drop(done.send(work())));
    result.recv_timeout(STUCK_AFTER).ok()
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("it is a process");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Runs a program to its end, and answers what it said.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("it can't be run: {command:?}: {error}"));
    output_of(child, &format!("{command:?}"))
}

/// What a program says until its end.
#[track_caller]
pub fn output_of(child: Child, what: &str) -> Output {
    let pid = child.id();
    let ended = unless_stuck(move || child.wait_with_output());
    let output = ended.unwrap_or_else(|| {
        kill(pid);
        panic!("it got stuck: {what}")
    });
    output.expect("it can be waited for")
}

/// Runs a program to its end; what it says goes where the test's own output goes, unless the caller says otherwise.
#[track_caller]
pub fn status(command: &mut Command) -> ExitStatus {
    let child = command.spawn();
    let mut child = child.unwrap_or_else(|error| panic!("it can't be run: {command:?}: {error}"));
    end_of(&mut child, &format!("{command:?}"))
}

/// The end of a program that says nothing any more.
#[track_caller]
pub fn end_of(child: &mut Child, what: &str) -> ExitStatus {
    let deadline = Instant::now() + STUCK_AFTER;
    loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            return status;
        }
        if Instant::now() > deadline {
            kill(child.id());
            panic!("it got stuck: {what}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The next line, with its end, and the rest behind it; nothing if none comes.
pub fn line_of<R: Read + Send + 'static>(from: R) -> Option<(String, BufReader<R>)> {
    unless_stuck(move || {
        let mut from = BufReader::new(from);
        let mut line = String::new();
        from.read_line(&mut line).expect("it is text");
        (line, from)
    })
}
