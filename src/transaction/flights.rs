//! Groups of commits on their way into the store, and the one that gathers behind them.
//!
//! ```text
//!   gathering ──> takes off ──> on its way ──> lands          in the order in which they took off
//!       └ held: what has to wait until everything has landed
//! ```

use super::group::Group;
use super::pipeline::Request;
use crate::Error;
use atlas_kvs::{AtomicBatch, KvsError};
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;
use tokio::sync::{mpsc, oneshot};

pub(super) type Written = std::result::Result<(), KvsError>;

/// A group on its way into the store.
pub(super) struct Flight {
    pub(super) group: Group,
    pub(super) batch: AtomicBatch,
}

/// Groups on their way. They land in the order in which they took off.
#[derive(Default)]
pub(super) struct Flights {
    // Invariant: one write or answer for each flight, in the same order.
    flights: VecDeque<Box<Flight>>,
    writes: FuturesOrdered<BoxFuture<'static, Written>>,
    /// The store has answered for so many of the first, and nobody has looked yet.
    answered: VecDeque<Written>,
    /// What has to wait until everything has landed.
    pub(super) held: Option<Request>,
    /// Admitted, and to take off when there is room. Nothing while nothing is on its way.
    pub(super) gathering: Group,
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether one more may take off beside these, of which there may be `flights_max`.
    pub(super) fn have_room(&self, flights_max: usize) -> bool {
        self.flights.len() < flights_max && !self.one_goes_alone()
    }

    pub(super) fn one_goes_alone(&self) -> bool {
        self.flights.iter().any(|flight| flight.group.goes_alone())
    }

    /// Takes back what was admitted and has not taken off.
    pub(super) fn take_gathering(&mut self) -> Group {
        std::mem::take(&mut self.gathering)
    }

    pub(super) fn take_off(&mut self, flight: Box<Flight>, write: BoxFuture<'static, Written>) {
        self.flights.push_back(flight);
        self.writes.push_back(write);
    }

    /// The first that took off, when the store has answered for it; nothing if there is none. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<(Box<Flight>, Written)> {
        let written = match self.answered.pop_front() {
            Some(written) => written,
            None => self.writes.next().await?,
        };
        self.flights.pop_front().map(|flight| (flight, written))
    }

    /// Does `work` without keeping the groups on their way from going on: it may wait for a number, which may wait for a
    /// connection that one of them holds.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            if !self.writes.is_empty() {
                while let Poll::Ready(Some(written)) = self.writes.poll_next_unpin(cx) {
                    self.answered.push_back(written);
                }
            }
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Waits for none of them any more: whether they are written nobody knows.
    pub(super) fn give_up(&mut self) -> Vec<Group> {
        self.writes = FuturesOrdered::new();
        self.answered.clear();
        self.flights.drain(..).map(|flight| flight.group).collect()
    }
}

/// What the leader hears of.
pub(super) enum Event {
    Landed(Box<Flight>, Written),
    Asked(Request),
    NobodyIsLeft,
    RuntimeIsGone,
}

/// Groups on their way first: who is answered soon asks again soon.
pub(super) async fn next_event(
    flights: &mut Flights,
    may_ask: bool,
    is_left_alone: bool,
    queue: &mut mpsc::Receiver<Request>,
    gone: &mut (impl Future<Output = ()> + Unpin),
) -> Event {
    if flights.is_empty() {
        if let Some(held) = flights.held.take() {
            return Event::Asked(held);
        }
        if is_left_alone {
            return Event::NobodyIsLeft;
        }
    }
    tokio::select! {
        biased;
        Some((flight, written)) = flights.next(), if !flights.is_empty() => Event::Landed(flight, written),
        first = queue.recv(), if may_ask => first.map_or(Event::NobodyIsLeft, Event::Asked),
        () = gone => Event::RuntimeIsGone,
    }
}

/// Sends away who queued up while the store is closed: nothing of theirs was applied.
/// A request to stop is handed back.
pub(super) fn refuse_waiting(
    queue: &mut mpsc::Receiver<Request>,
    flights: &mut Flights,
    reason: &str,
) -> Option<oneshot::Sender<()>> {
    let mut stop = None;
    let refusal = || Error::Unavailable { what: "the store".to_owned(), reason: reason.to_owned() };
    while let Some(request) = flights.held.take().or_else(|| queue.try_recv().ok()) {
        stop = request.refuse(refusal).or(stop);
    }
    stop
}
