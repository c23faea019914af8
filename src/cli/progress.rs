//! How far something long has come: a bar on a terminal, a line every five seconds elsewhere, on standard error.

use crate::ops::{Progress, ProgressSink, no_progress};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows the progress of one command until it is dropped.
pub(crate) struct Reporter {
    sink: ProgressSink,
    bar: Option<ProgressBar>,
}

impl Reporter {
    /// Nothing at all if `is_silent`.
    pub(crate) fn new(is_silent: bool, command: &'static str) -> Reporter {
        if is_silent {
            return Reporter { sink: no_progress(), bar: None };
        }
        if !std::io::stderr().is_terminal() {
            let lines = Mutex::new(Lines { command, last: Instant::now() });
            return Reporter { sink: Arc::new(move |progress| lines.lock().show(&progress)), bar: None };
        }
        let bar = ProgressBar::no_length();
        bar.enable_steady_tick(Duration::from_millis(200));
        let shown = bar.clone();
        let step = Mutex::new(String::new());
        let sink = move |progress: Progress| {
            let mut step = step.lock();
            if *step != progress.step {
                step.clone_from(&progress.step);
                shown.set_style(style_for(&progress));
                shown.set_message(progress.step.clone());
                shown.reset();
            }
            match progress.total {
                Some(total) => shown.set_length(total),
                None => shown.unset_length(),
            }
            shown.set_position(progress.done);
        };
        Reporter { sink: Arc::new(sink), bar: Some(bar) }
    }

    /// Where progress is told.
    pub(crate) fn sink(&self) -> ProgressSink {
        self.sink.clone()
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style_for(progress: &Progress) -> ProgressStyle {
    let template = match (progress.unit.as_str(), progress.total) {
        ("bytes", Some(_)) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        ("bytes", None) => "{spinner} {msg} {bytes} {bytes_per_sec}",
        (_, Some(_)) => "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}",
        (_, None) => "{spinner} {msg} {human_pos} {per_sec}",
    };
    ProgressStyle::with_template(template).expect("these templates are well formed")
}

struct Lines {
    command: &'static str,
    last: Instant,
}

impl Lines {
    fn show(&mut self, progress: &Progress) {
        if self.last.elapsed() < LINE_EVERY {
            return;
        }
        self.last = Instant::now();
        // Whoever closed standard error does not want to know.
        let _ = writeln!(std::io::stderr(), "{}", line(self.command, progress));
    }
}

fn line(command: &str, progress: &Progress) -> String {
    let amount = |number: u64| match progress.unit.as_str() {
        "bytes" => super::output::size(number),
        unit => format!("{} {unit}", super::output::count(number)),
    };
    let total = progress.total.map_or_else(String::new, |total| format!(" of {}", amount(total)));
    let step = if progress.step == command { String::new() } else { format!("{}: ", progress.step) };
    // A step that counts nothing is told by its name.
    if progress.unit == "steps" && progress.done == 0 {
        return format!("{command}: {}", progress.step);
    }
    format!("{command}: {step}{}{total}", amount(progress.done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_step_amount_and_total() {
        let mut progress = Progress { step: "copy".into(), done: 1 << 20, total: Some(3 << 20), unit: "bytes".into() };
        assert_eq!(line("backup create", &progress), "backup create: copy: 1.00 MiB of 3.00 MiB");
        progress = Progress { step: "clean".into(), done: 12_345, total: None, unit: "entries".into() };
        assert_eq!(line("x", &progress), "x: clean: 12,345 entries");
        assert_eq!(line("clean", &progress), "clean: 12,345 entries");
        progress = Progress { step: "verify".into(), done: 0, total: None, unit: "steps".into() };
        assert_eq!(line("demo", &progress), "demo: verify");
    }
}
