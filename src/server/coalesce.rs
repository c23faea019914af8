//! Callers that wait for a fresh timestamp share a request.
//!
//! A number must be drawn after its caller asked for it. Whatever was handed out before the call, to anybody, lies below
//! it then, and a reader at it finds what was written before. So nobody joins a request that is under way: who comes
//! meanwhile waits for the next one, which asks for as many numbers as there are callers by then.
//!
//! ```text
//!   callers      a    b c d         e
//!   requests     [ 1 ]     [   3   ]   [ 1 ]          one at a time
//! ```
//!
//! One at a time is enough: a second one would take half of the callers along, and so cost more for as many numbers.
//!
//! A task of its own sends the requests, so that no caller depends on another one that goes away or is not polled. It
//! lives on the runtime on which the connection was made, as what drives the connection does: where one of them stops,
//! so does the other. It ends with the last clone of its client, and its callers are told if the runtime ends before.

use std::future::Future;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

/// Most numbers one request asks for: the limit of the protocol. As many callers wait in the queue, the others before
/// it.
const COUNT_MAX: usize = 10_000;

/// A number, or why there is none. A status can be told to everybody who shared the request.
type Answer = Result<u64, Status>;

/// Where callers wait for their numbers.
#[derive(Debug)]
pub(super) struct Coalescer {
    callers: mpsc::Sender<oneshot::Sender<Answer>>,
    _requests: AbortOnDropHandle<()>,
}

impl Coalescer {
    /// `ask` asks for so many numbers in a row, and answers the first of them. To be called on the runtime of the
    /// connection.
    pub(super) fn new<F>(ask: impl Fn(u32) -> F + Send + 'static) -> Coalescer
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let (callers, waiting) = mpsc::channel(COUNT_MAX);
        Coalescer { callers, _requests: AbortOnDropHandle::new(tokio::spawn(send_requests(waiting, ask))) }
    }

    /// A number drawn after this call.
    ///
    /// Cancel safe: the number of a dropped call is wasted, or was not asked for yet; all others get theirs.
    pub(super) async fn fresh(&self) -> Answer {
        let (caller, answer) = oneshot::channel();
        self.callers.send(caller).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> Status {
    Status::unavailable("the runtime on which the connection was made has ended")
}

async fn send_requests<F>(mut waiting: mpsc::Receiver<oneshot::Sender<Answer>>, ask: impl Fn(u32) -> F)
where
    F: Future<Output = Answer>,
{
    let mut callers = Vec::new();
    while waiting.recv_many(&mut callers, COUNT_MAX).await > 0 {
        callers.retain(|caller| !caller.is_closed());
        if callers.is_empty() {
            continue;
        }
        let count = u32::try_from(callers.len()).expect("a request has a limit");
        // After the callers were taken: whoever comes from here on waits for the next request.
        let first = ask(count).await;
        for (number, caller) in (0..).zip(callers.drain(..)) {
            // One that makes no sense is refused by whoever looks at it. A caller that has gone wastes its number.
            let _ = caller.send(first.clone().map(|first| first.saturating_add(number)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::{BoxFuture, join_all};
    use futures::{FutureExt, poll};

    /// A request as the server sees it: how many numbers it asks for, and where its answer goes.
    type Asked = (u32, oneshot::Sender<Answer>);

    /// A coalescer, and the requests it sends.
    fn coalescer() -> (Coalescer, mpsc::UnboundedReceiver<Asked>) {
        let (sender, requests) = mpsc::unbounded_channel();
        let ask = move |count| {
            let (reply, answer) = oneshot::channel();
            sender.send((count, reply)).expect("the test looks at every request");
            async move { answer.await.expect("the test answers every request") }
        };
        (Coalescer::new(ask), requests)
    }

    /// A caller that waits.
    async fn caller(coalescer: &Coalescer) -> BoxFuture<'_, Answer> {
        let mut caller = coalescer.fresh().boxed();
        assert!(poll!(&mut caller).is_pending());
        caller
    }

    async fn request(requests: &mut mpsc::UnboundedReceiver<Asked>) -> Asked {
        requests.recv().await.expect("requests are sent as long as there are callers")
    }

    #[tokio::test]
    async fn who_comes_while_a_request_is_under_way_shares_the_next_one() {
        let (coalescer, mut requests) = coalescer();
        let first = caller(&coalescer).await;
        let (count, reply) = request(&mut requests).await;
        assert_eq!(count, 1);
        let mut later = Vec::new();
        for _ in 0..3 {
            later.push(caller(&coalescer).await);
        }
        reply.send(Ok(10)).expect("it is waited for");
        assert_eq!(first.await.expect("answered"), 10);
        for caller in &mut later {
            assert!(poll!(caller).is_pending(), "the first request began before the call");
        }
        let (count, reply) = request(&mut requests).await;
        assert_eq!(count, 3);
        reply.send(Ok(20)).expect("it is waited for");
        let numbers: Vec<_> = join_all(later).await.into_iter().map(|number| number.expect("answered")).collect();
        assert_eq!(numbers, [20, 21, 22], "each has its own");
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_stalls_nobody() {
        let (coalescer, mut requests) = coalescer();
        let first = caller(&coalescer).await;
        let (_, reply) = request(&mut requests).await;
        // The one whose request is under way, and one that waits.
        drop(first);
        let (gone, stays) = (caller(&coalescer).await, caller(&coalescer).await);
        drop(gone);
        reply.send(Ok(1)).expect("the request goes on");
        let (count, reply) = request(&mut requests).await;
        assert_eq!(count, 1, "nobody waits for the other one");
        reply.send(Ok(2)).expect("it is waited for");
        assert_eq!(stays.await.expect("answered"), 2);

        // All of those that waited.
        let first = caller(&coalescer).await;
        let (_, reply) = request(&mut requests).await;
        drop(caller(&coalescer).await);
        reply.send(Ok(3)).expect("it is waited for");
        assert_eq!(first.await.expect("answered"), 3);
        let last = caller(&coalescer).await;
        let (count, reply) = request(&mut requests).await;
        assert_eq!(count, 1);
        reply.send(Ok(4)).expect("it is waited for");
        assert_eq!(last.await.expect("answered"), 4);
    }

    #[tokio::test]
    async fn an_error_reaches_all_who_shared_the_request_and_nobody_else() {
        let (coalescer, mut requests) = coalescer();
        let share = [caller(&coalescer).await, caller(&coalescer).await];
        let (count, reply) = request(&mut requests).await;
        assert_eq!(count, 2);
        let later = caller(&coalescer).await;
        let error = Status::with_details(tonic::Code::DataLoss, "damage", "details".into());
        reply.send(Err(error)).expect("it is waited for");
        for failed in join_all(share).await {
            let error = failed.expect_err("the request failed");
            let told = (error.code(), error.message(), error.details());
            assert_eq!(told, (tonic::Code::DataLoss, "damage", &b"details"[..]));
        }
        let (_, reply) = request(&mut requests).await;
        reply.send(Ok(5)).expect("it is waited for");
        assert_eq!(later.await.expect("answered"), 5);
    }

    #[tokio::test]
    async fn no_request_asks_for_more_than_the_protocol_allows() {
        let (coalescer, mut requests) = coalescer();
        let mut callers = Vec::new();
        for _ in 0..10_003 {
            callers.push(caller(&coalescer).await);
        }
        let answering = async {
            let mut counts = Vec::new();
            while counts.iter().sum::<u32>() < 10_003 {
                let (count, reply) = request(&mut requests).await;
                let first = counts.iter().sum::<u32>().into();
                counts.push(count);
                reply.send(Ok(first)).expect("it is waited for");
            }
            counts
        };
        let (answers, counts) = tokio::join!(join_all(callers), answering);
        assert!(counts.iter().all(|count| *count <= 10_000), "{counts:?}");
        let mut numbers: Vec<_> = answers.into_iter().map(|number| number.expect("answered")).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..10_003), "each has its own");
    }

    #[test]
    fn callers_are_told_when_the_runtime_of_the_connection_has_ended() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (connection, ours) = (runtime(), runtime());
        let (coalescer, mut requests) = connection.block_on(async { coalescer() });
        let waiting = ours.block_on(caller(&coalescer));
        // Under way when it ends.
        let _request = connection.block_on(request(&mut requests));
        drop(connection);
        assert_eq!(ours.block_on(waiting).expect_err("nobody answers").code(), tonic::Code::Unavailable);
        assert_eq!(ours.block_on(coalescer.fresh()).expect_err("nobody answers").code(), tonic::Code::Unavailable);
    }
}
