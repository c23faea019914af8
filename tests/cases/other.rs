//! A process of the operating system beside the test: this program, started once more as a child that does as it is told.
//!
//! Between two steps of a commit it stops itself (SIGSTOP), or dies (SIGKILL).

use crate::common::bounded::STUCK_AFTER;
use crate::common::faulty::PATIENCE;
use atlas::Timestamp;
use atlas::transaction::CommitStep;
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What tells the child what to do, in lines of its own choice.
const ORDERS: &str = "ATLAS_OTHER_ORDERS";

// ---- the child

/// What this process is to do, if it is a child.
pub(crate) fn orders() -> Option<Vec<String>> {
    Some(std::env::var(ORDERS).ok()?.split('\n').map(str::to_owned).collect())
}

/// Past the capturing of the test harness.
pub(crate) fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "child: {line}").expect("the parent listens");
    out.flush().expect("the parent listens");
}

/// The next line of the parent.
pub(crate) fn told() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the parent speaks");
    line.trim().to_owned()
}

/// Before this step of the next commit that gets there.
pub(crate) fn stop_before(step: CommitStep, signal: Signal) {
    let reached = move || {
        tell("at the commit");
        kill_process(getpid(), signal).expect("a process may signal itself");
        if signal == Signal::KILL {
            // Nothing more happens on this thread, however long the signal takes.
            loop {
                std::thread::park();
            }
        }
        // The signal may reach another thread first: this one must not run on before the process stands still.
        std::thread::sleep(Duration::from_millis(500));
        // Once: what the leader does later has to go through.
        fail::remove(step.fail_point());
    };
    fail::cfg_callback(step.fail_point(), reached).expect("fail points are built in");
}

// ---- the parent

/// The child, which is given a test `child` to run.
pub(crate) struct Other {
    pub(crate) child: Child,
    lines: Receiver<String>,
}

impl Other {
    pub(crate) fn start(orders: &[&str]) -> Other {
        let mut child = Command::new(std::env::current_exe().expect("this program has a file"))
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ORDERS, orders.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let (heard, lines) = channel();
        // A thread of its own, so that a child that says nothing is not waited for without end.
        std::thread::spawn(move || {
            for line in out.lines() {
                let _ = heard.send(line.expect("the child can be heard"));
            }
        });
        Other { child, lines }
    }

    /// What the child says next, or nothing when it has ended.
    pub(crate) fn says(&mut self) -> Option<String> {
        loop {
            let line = match self.lines.recv_timeout(STUCK_AFTER) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("the child has got stuck"),
            };
            // The harness says things too, and on the same line.
            if let Some((_, said)) = line.split_once("child: ") {
                return Some(said.trim().to_owned());
            }
        }
    }

    #[track_caller]
    pub(crate) fn must_say(&mut self, expected: &str) {
        assert_eq!(self.says().as_deref(), Some(expected));
    }

    pub(crate) fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{line}").expect("the child listens");
    }

    /// Tells it to go on, and waits until it has begun and stands at its commit. Answers its start timestamp.
    pub(crate) fn reach_the_commit(&mut self) -> Timestamp {
        self.tell("go on");
        let began = self.says().expect("it begins");
        let start_ts = began.strip_prefix("began ").expect("it begins").parse().expect("a timestamp");
        self.must_say("at the commit");
        Timestamp::new(start_ts).expect("a timestamp")
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until the operating system has stopped it.
    pub(crate) fn await_stop(&self) {
        let stat = format!("/proc/{}/stat", self.child.id());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = std::fs::read_to_string(&stat).expect("the child is there");
            if state.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')) {
                return;
            }
            assert!(Instant::now() < deadline, "the child does not stop: {state}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Only if the test has failed: otherwise it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a test of the parent; the child runs its own only.
pub(crate) fn run(test: impl Future<Output = ()>) {
    if orders().is_some() {
        return;
    }
    tokio::runtime::Runtime::new().expect("a runtime can be made").block_on(test);
}
