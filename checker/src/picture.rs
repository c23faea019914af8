//! A timeline for people: time runs downwards, each transaction has a lane, an arrow leads from writer to reader.
//!
//! ```text
//!   ts  T2 (line 3, committed)         T5 (line 7, committed)
//!    2  begin, sees commits below 2
//!    5  |                              begin, sees commits below 5
//!       *----------------------------> get t/r/c = "b"
//!    7  commit: put t/r/c = "b"        |
//! ```

/// Between the end of a lane's longest text and the next lane.
const GAP: usize = 3;

/// A picture as it is put together. Everything in it is printable ASCII.
pub(crate) struct Picture {
    axis: &'static str,
    lanes: Vec<String>,
    events: Vec<Event>,
}

struct Event {
    at: u64,
    // Events at one time are drawn in this order, and then in the order in which they were added.
    rank: Rank,
    lane: usize,
    text: String,
    arrow_from: Option<usize>,
}

/// What comes first of what happens at one timestamp: bounds are exclusive, so a snapshot lies before its commit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Begin,
    Read,
    Abort,
    Commit,
}

impl Picture {
    pub(crate) fn new(axis: &'static str) -> Self {
        Self { axis, lanes: Vec::new(), events: Vec::new() }
    }

    /// Adds a lane at the right.
    pub(crate) fn lane(&mut self, title: String) -> usize {
        self.lanes.push(title);
        self.lanes.len() - 1
    }

    pub(crate) fn event(&mut self, at: u64, rank: Rank, lane: usize, text: String, arrow_from: Option<usize>) {
        let arrow_from = arrow_from.filter(|from| *from != lane);
        self.events.push(Event { at, rank, lane, text, arrow_from });
    }

    pub(crate) fn draw(mut self) -> String {
        self.events.sort_by_key(|event| (event.at, event.rank));
        let times: Vec<String> = self.times();
        let margin = times.iter().map(String::len).chain([self.axis.len()]).max().unwrap_or(0);
        let starts = self.lane_starts(margin + 2);
        let mut lines = vec![Line::at_margin(margin, self.axis)];
        for (title, start) in self.lanes.iter().zip(&starts) {
            lines[0].put(*start, title);
        }
        for (number, (event, time)) in self.events.iter().zip(&times).enumerate() {
            let mut line = Line::at_margin(margin, time);
            for (lane, start) in starts.iter().enumerate() {
                if self.is_between_events(lane, number) {
                    line.put(*start, "|");
                }
            }
            line.put(starts[event.lane], &event.text);
            if let Some(from) = event.arrow_from {
                line.arrow(starts[from], starts[event.lane], event.text.len());
            }
            lines.push(line);
        }
        lines.into_iter().map(Line::finish).collect()
    }

    /// The time of each event that does not happen at that of the one above.
    fn times(&self) -> Vec<String> {
        let mut last = None;
        let times = self.events.iter().map(|event| {
            let is_new = last.replace(event.at) != Some(event.at);
            if is_new && event.at != u64::MAX { event.at.to_string() } else { String::new() }
        });
        times.collect()
    }

    fn lane_starts(&self, margin: usize) -> Vec<usize> {
        let mut start = margin;
        let starts = self.lanes.iter().enumerate().map(|(lane, title)| {
            let texts = self.events.iter().filter(|event| event.lane == lane).map(|event| event.text.len());
            let width = texts.chain([title.len()]).max().unwrap_or(0);
            let next = start + width + GAP;
            std::mem::replace(&mut start, next)
        });
        starts.collect()
    }

    fn is_between_events(&self, lane: usize, number: usize) -> bool {
        let of_lane = |event: &Event| event.lane == lane;
        self.events[..number].iter().any(of_lane) && self.events[number..].iter().any(of_lane)
    }
}

struct Line(Vec<u8>);

impl Line {
    fn at_margin(margin: usize, text: &str) -> Self {
        Self(format!("{text:>margin$}").into_bytes())
    }

    fn put(&mut self, at: usize, text: &str) {
        if self.0.len() < at + text.len() {
            self.0.resize(at + text.len(), b' ');
        }
        self.0[at..at + text.len()].copy_from_slice(text.as_bytes());
    }

    /// From the lane that begins at `from` to the text of `len` at `to`.
    fn arrow(&mut self, from: usize, to: usize, len: usize) {
        if from < to {
            self.put(from, &format!("*{}>", "-".repeat(to - from - GAP)));
        } else {
            let text_end = to + len + 1;
            self.put(text_end, &format!("<{}*", "-".repeat(from - text_end - 1)));
        }
    }

    fn finish(mut self) -> String {
        self.0.truncate(self.0.trim_ascii_end().len());
        self.0.push(b'\n');
        String::from_utf8_lossy(&self.0).into_owned()
    }
}
