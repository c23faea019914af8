use super::super::mock::{MockClock, settle};
use super::*;
use crate::Error;
use futures::FutureExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::Poll;

const FOREVER: Duration = Duration::from_secs(1_000_000);
const LEASE: Duration = Duration::from_secs(20);
const NOTHING: (usize, usize, usize) = (0, 0, 0);

impl LockService {
    /// How many locks, requests and waiting calls are kept in memory.
    fn kept(&self) -> (usize, usize, usize) {
        let locks = self.inner.locks.iter().map(|shard| shard.lock().len()).sum();
        let requests = self.inner.requests.iter().map(|shard| shard.lock().open.len()).sum();
        (locks, requests, self.inner.waiting.load(Ordering::SeqCst))
    }
}

fn service() -> (LockService, Arc<MockClock>) {
    let clock = MockClock::new();
    (LockService::with_clock(7, LockOptions::default(), clock.clone()), clock)
}

fn names(names: &str) -> Vec<LockDescriptor> {
    names.chars().map(|name| LockDescriptor::advisory(&name.to_string())).collect()
}

fn request(descriptors: &str) -> LockRequest {
    LockRequest::new(names(descriptors), FOREVER)
}

fn take(service: &LockService, descriptors: &str) -> LockToken {
    service.try_lock(request(descriptors)).expect("the id is new").expect("the locks are free")
}

fn is_free(service: &LockService, descriptors: &str) -> bool {
    let token = service.try_lock(request(descriptors)).expect("the id is new");
    service.unlock(&token.into_iter().collect::<Vec<_>>());
    token.is_some()
}

type Locking = Pin<Box<dyn Future<Output = Result<LockToken>> + Send>>;

/// A call for locks that has come as far as it can.
async fn waiting(service: &LockService, request: LockRequest) -> Locking {
    let service = service.clone();
    let mut call: Locking = Box::pin(async move { service.lock(request).await });
    assert!(futures::poll!(&mut call).is_pending(), "somebody should have had the locks");
    call
}

async fn granted(call: &mut Locking) -> Option<LockToken> {
    match futures::poll!(call) {
        Poll::Ready(token) => Some(token.expect("the call does not fail")),
        Poll::Pending => None,
    }
}

#[tokio::test]
async fn a_lock_has_one_holder() {
    let (service, _clock) = service();
    let a = take(&service, "ab");
    assert!(!is_free(&service, "a") && !is_free(&service, "bc") && is_free(&service, "c"));
    assert!(service.is_held(&a));
    assert_eq!(service.unlock(&[a]), [a]);
    assert!(is_free(&service, "abc") && !service.is_held(&a));
    assert_eq!(service.unlock(&[a]), [], "what was given up can't be given up again");
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn who_came_first_is_served_first() {
    let (service, _clock) = service();
    let mut holder = take(&service, "a");
    let mut calls = Vec::new();
    for _ in 0..5 {
        calls.push(waiting(&service, request("a")).await);
    }
    for next in 0..calls.len() {
        service.unlock(&[holder]);
        // Asked in reverse, so that the order of asking can't be what decides.
        let mut served = Vec::new();
        for index in (next..calls.len()).rev() {
            if let Some(token) = granted(&mut calls[index]).await {
                served.push((index, token));
            }
        }
        let [(index, token)] = served[..] else { panic!("one is served at a time, not {served:?}") };
        assert_eq!(index, next);
        holder = token;
    }
}

#[tokio::test]
async fn a_newcomer_does_not_overtake_one_who_was_handed_the_lock_and_still_sleeps() {
    let (service, _clock) = service();
    let holder = take(&service, "a");
    let mut sleeper = waiting(&service, request("a")).await;
    service.unlock(&[holder]);
    assert!(!is_free(&service, "a"));
    assert!(granted(&mut sleeper).await.is_some());
}

#[tokio::test]
async fn locks_are_taken_in_one_order_whatever_the_request_says() {
    let (service, _clock) = service();
    let a = take(&service, "a");
    // Were `b` taken first, it would be in use now.
    let _call = waiting(&service, request("bba")).await;
    assert!(is_free(&service, "b"));
    service.unlock(&[a]);
    assert!(!is_free(&service, "b"), "the request goes on without its caller being asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_tasks_that_lock_overlapping_sets_all_come_to_an_end() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let service = LockService::new(1, LockOptions::default());
    let inside: Arc<Vec<AtomicUsize>> = Arc::new((0..8).map(|_| AtomicUsize::new(0)).collect());
    let tasks = (0..50).map(|task| {
        let (service, inside) = (service.clone(), inside.clone());
        tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(task));
            for _ in 0..40 {
                let wanted: HashSet<usize> = (0..4).map(|_| rng.random_range(0..inside.len())).collect();
                let mut order: Vec<usize> = wanted.iter().copied().collect();
                order.rotate_left(rng.random_range(0..wanted.len()));
                let descriptors = order.iter().map(|n| LockDescriptor::advisory(&n.to_string())).collect();
                let request = LockRequest::new(descriptors, FOREVER);
                // Some lose patience, so that handing over and giving up meet.
                if [true, false, false].choose(&mut rng).is_some_and(|impatient| *impatient) {
                    let mut call = Box::pin(service.lock(request));
                    for _ in 0..rng.random_range(0..3) {
                        if let Poll::Ready(token) = futures::poll!(&mut call) {
                            service.unlock(&[token.expect("the call does not fail")]);
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                let token = service.lock(request).await.expect("everybody lets go in the end");
                for n in &wanted {
                    assert_eq!(inside[*n].fetch_add(1, Ordering::SeqCst), 0, "two hold lock {n} (seed {seed})");
                }
                tokio::task::yield_now().await;
                wanted.iter().for_each(|n| assert_eq!(inside[*n].fetch_sub(1, Ordering::SeqCst), 1));
                assert_eq!(service.unlock(&[token]), [token]);
            }
        })
    });
    let all = futures::future::join_all(tasks);
    let all = tokio::time::timeout(Duration::from_secs(60), all).await;
    for task in all.unwrap_or_else(|_| panic!("tasks wait for each other (seed {seed})")) {
        task.expect("no task panics");
    }
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn a_dropped_call_leaves_nothing_behind() {
    let (service, clock) = service();
    let b = take(&service, "b");
    let call = waiting(&service, request("abc")).await;
    let mut behind = waiting(&service, request("a")).await;
    drop(call);
    let a = granted(&mut behind).await.expect("what the dropped call had taken goes to the next");
    service.unlock(&[a, b]);
    assert_eq!(service.kept(), NOTHING);
    assert_eq!(clock.sleepers(), 0, "the task has not begun to sleep, and no call sleeps on");
}

#[tokio::test]
async fn a_call_dropped_after_it_was_granted_but_before_it_knew_gives_the_locks_up() {
    let (service, _clock) = service();
    let a = take(&service, "a");
    let call = waiting(&service, request("ab")).await;
    service.unlock(&[a]);
    assert!(!is_free(&service, "a") && !is_free(&service, "b"));
    drop(call);
    assert!(is_free(&service, "ab"));
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn a_call_that_was_never_polled_takes_nothing() {
    let (service, _clock) = service();
    drop(service.lock(request("a")));
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn a_call_that_times_out_names_the_lock_and_leaves_nothing_behind() {
    let (service, clock) = service();
    let b = take(&service, "b");
    let call = waiting(&service, LockRequest::new(names("abc"), Duration::from_secs(5))).await;
    clock.advance(Duration::from_secs(5)).await;
    let error = call.now_or_never().expect("the time is over").expect_err("`b` is in use");
    assert_eq!(error.to_string(), "the lock on 'b' was not granted within 5000 ms");
    assert!(matches!(error, Error::LockTimeout { .. }));
    assert!(is_free(&service, "ac"));
    service.unlock(&[b]);
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn the_same_id_joins_a_request_that_waits() {
    let (service, _clock) = service();
    let a = take(&service, "a");
    let same = request("ab");
    let first = waiting(&service, same.clone()).await;
    let mut second = waiting(&service, same.clone()).await;
    drop(first);
    assert!(!is_free(&service, "a"), "`a` is in use");
    service.unlock(&[a]);
    let token = granted(&mut second).await.expect("the request was kept for the second call");
    assert_eq!(service.lock(same).now_or_never().expect("granted before").expect("same id"), token);
    assert_eq!(service.unlock(&[token]), [token], "there was one request only");
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn a_late_repetition_takes_no_lock_again() {
    let (service, _clock) = service();
    let same = request("a");
    let token = service.lock(same.clone()).await.expect("`a` is free");
    service.unlock(&[token]);
    assert_eq!(service.lock(same).await.expect("the id is remembered"), token);
    assert!(!service.is_held(&token) && is_free(&service, "a"));
}

#[tokio::test]
async fn a_request_that_timed_out_may_be_made_again() {
    let (service, clock) = service();
    let a = take(&service, "a");
    let same = LockRequest { timeout: Duration::from_secs(1), ..request("a") };
    let call = waiting(&service, same.clone()).await;
    clock.jump(Duration::from_secs(1));
    assert!(call.await.is_err());
    service.unlock(&[a]);
    let token = service.lock(same).await.expect("`a` is free");
    assert!(service.is_held(&token));
}

#[tokio::test]
async fn an_id_stands_for_one_set_of_locks() {
    let (service, _clock) = service();
    let first = request("ab");
    let token = service.lock(LockRequest { descriptors: names("ba"), ..first.clone() }).await.expect("free");
    assert_eq!(service.lock(first.clone()).await.expect("the same locks"), token);
    let other = LockRequest { descriptors: names("ac"), ..first };
    assert!(matches!(service.lock(other).await, Err(Error::Usage(_))));
}

#[tokio::test]
async fn ids_are_remembered_in_bounded_memory() {
    let clock = MockClock::new();
    let options = LockOptions { remembered_max: 1000, ..LockOptions::default() };
    let service = LockService::with_clock(1, options, clock);
    let remembered = || -> usize {
        service.inner.requests.iter().map(|shard| shard.lock()).map(|s| s.ended.len() + s.ended_before.len()).sum()
    };
    for _ in 0..10_000 {
        let token = take(&service, "a");
        service.unlock(&[token]);
    }
    // Rounded up once for each shard and generation.
    assert!((1000..=2000 + 2 * SHARDS).contains(&remembered()), "{}", remembered());
}

#[tokio::test]
async fn too_many_waiting_calls_are_refused_and_leave_no_trace() {
    let clock = MockClock::new();
    let service = LockService::with_clock(1, LockOptions { waiters_max: 1, ..LockOptions::default() }, clock);
    let a = take(&service, "a");
    let call = waiting(&service, request("a")).await;
    let refused = service.lock(request("ab")).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })));
    drop(call);
    drop(waiting(&service, request("a")).await);
    service.unlock(&[a]);
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn the_locks_of_a_silent_holder_go_to_the_next_without_help() {
    let (service, clock) = service();
    settle().await;
    let silent = take(&service, "a");
    let mut call = waiting(&service, request("a")).await;
    clock.advance(LEASE - Duration::from_secs(1)).await;
    assert!(service.is_held(&silent) && granted(&mut call).await.is_none());
    clock.advance(LEASE / 2).await;
    assert!(!service.is_held(&silent));
    let next = granted(&mut call).await.expect("nobody but the clock moved");
    assert!(service.is_held(&next));
    assert_eq!(service.refresh(&[silent, next]), [next]);
    assert_eq!(service.unlock(&[silent, next]), [next]);
}

#[tokio::test]
async fn an_expired_lock_is_free_before_any_task_has_looked_at_it() {
    let (service, clock) = service();
    let silent = take(&service, "a");
    clock.jump(LEASE);
    assert!(!service.is_held(&silent));
    assert!(service.holders().is_empty());
    assert!(is_free(&service, "a"));
    assert_eq!(service.unlock(&[silent]), []);
}

#[tokio::test]
async fn an_expired_token_is_forgotten_though_nobody_wants_the_lock() {
    let (service, clock) = service();
    settle().await;
    take(&service, "a");
    clock.advance(LEASE * 2).await;
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn a_refreshed_holder_keeps_its_locks_up_to_its_tenure_and_a_lease() {
    let (service, clock) = service();
    settle().await;
    let tenure = Some(Duration::from_secs(60));
    let token = service.lock(LockRequest { tenure, ..request("a") }).await.expect("`a` is free");
    for _ in 0..5 {
        clock.advance(Duration::from_secs(10)).await;
        assert_eq!(service.refresh(&[token]), [token]);
    }
    clock.advance(Duration::from_secs(10)).await;
    assert_eq!(service.refresh(&[token]), [], "its tenure is over");
    assert!(service.is_held(&token), "the lease it was promised at 50 s stands");
    clock.advance(Duration::from_secs(10)).await;
    assert!(!service.is_held(&token) && is_free(&service, "a"));
}

#[tokio::test]
async fn a_token_of_another_epoch_is_void() {
    let (service, clock) = service();
    let token = take(&service, "a");
    let next = LockService::with_clock(8, LockOptions::default(), clock);
    // The worst case: the same request was granted in the new epoch too.
    let again = LockRequest { request_id: token.id, ..request("a") };
    let new = next.lock(again).await.expect("`a` is free");
    assert_eq!((new.epoch, new.id), (8, token.id));
    assert!(!next.is_held(&token) && next.is_held(&new));
    assert_eq!(next.refresh(&[token]), []);
    assert_eq!(next.unlock(&[token]), []);
    assert!(next.is_held(&new));
}

#[tokio::test]
async fn waiting_for_locks_ends_when_their_holders_let_go_and_takes_nothing() {
    let (service, _clock) = service();
    let a = take(&service, "a");
    let mut wait = Box::pin(service.wait_for(names("ab"), FOREVER));
    assert!(futures::poll!(&mut wait).is_pending());
    let mut behind = waiting(&service, request("a")).await;
    let mut wait_again = Box::pin(service.wait_for(names("a"), FOREVER));
    assert!(futures::poll!(&mut wait_again).is_pending());
    assert!(is_free(&service, "b"));

    service.unlock(&[a]);
    let next = granted(&mut behind).await.expect("the one in front only passed through");
    assert!(futures::poll!(&mut wait).is_ready());
    assert!(futures::poll!(&mut wait_again).is_pending(), "one came before it");
    service.unlock(&[next]);
    assert!(futures::poll!(&mut wait_again).is_ready());
    drop((wait, wait_again));
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn waiting_for_locks_times_out_and_leaves_the_queue() {
    let (service, clock) = service();
    let a = take(&service, "a");
    let mut wait = Box::pin(service.wait_for(names("a"), Duration::from_secs(3)));
    assert!(futures::poll!(&mut wait).is_pending());
    assert_eq!(service.holders()[0].waiters, 1);
    clock.jump(Duration::from_secs(3));
    assert!(matches!(wait.await, Err(Error::LockTimeout { waited_ms: 3000, .. })));
    assert_eq!(service.holders()[0].waiters, 0);
    service.unlock(&[a]);
    assert_eq!(service.kept(), NOTHING);
}

#[tokio::test]
async fn holders_show_who_has_what_and_how_many_want_it() {
    let (service, clock) = service();
    let b = take(&service, "b");
    clock.jump(Duration::from_secs(5));
    let _call = waiting(&service, request("ab")).await;
    let shown: Vec<_> = service
        .holders()
        .into_iter()
        .map(|h| (h.descriptor.to_string(), h.token == b, h.age.as_secs(), h.lease_left, h.waiters))
        .collect();
    let left = Some(Duration::from_secs(15));
    assert_eq!(shown, [("'a'".to_owned(), false, 0, None, 0), ("'b'".to_owned(), true, 5, left, 1)]);
}

#[tokio::test]
async fn the_background_task_ends_with_the_service() {
    let (service, clock) = service();
    settle().await;
    assert_eq!(clock.sleepers(), 1);
    drop(service);
    settle().await;
    assert_eq!(clock.sleepers(), 0);
}
