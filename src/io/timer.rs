//! Deadlines: one [`Timer`] per connection, all of a shard's in one ordered set.
//!
//! Setting a deadline is what happens several times in every request, expiring is rare. So a timer
//! that is moved later stays where it is in the set and is looked at again when its old place comes
//! up; only a timer that is moved earlier than its place is taken out and put back.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use slab::Slab;

/// Why a wait ended before its future did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// The time was up.
    Elapsed,
    /// The shard asked the waiting connection to end: see [`interrupt`].
    Interrupted,
}

/// Which waits an [`interrupt`] ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Nothing is under way: an idle keepalive connection. A graceful quit ends it.
    Idle,
    /// Nothing has come yet, too little time has passed for a graceful quit to end it, or the client is
    /// given time to take an answer.
    Due,
    /// A request is under way. Only a forced end interrupts it.
    Busy,
    /// The shard itself waits: nothing interrupts it.
    Service,
}

/// Milliseconds of the monotonic clock, at the kernel's tick (a coarse read costs a few
/// nanoseconds, and no timeout needs more).
#[expect(
    clippy::arithmetic_side_effects,
    reason = "time since the machine started, which is no 500 million years"
)]
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The monotonic clock as exactly as it goes, for what is measured and not waited for.
pub fn now_precise() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

const NEVER: u64 = u64::MAX;

/// Entries that are kept for the next timers.
const FREE_MAX: usize = 256;

/// A connection's timer. At most one wait at a time uses it.
#[derive(Debug)]
pub struct Timer {
    key: usize,
}

#[derive(Debug)]
struct Entry {
    /// When the wait is to end; [`NEVER`] when nothing waits.
    deadline: u64,
    /// Where the entry stands in the set; [`NEVER`]: it is not in it. Never later than `deadline`.
    place: u64,
    wait: Wait,
    fired: Option<Expired>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Timers {
    entries: Slab<Entry>,
    /// Entries of timers that are no more, with the places they have: the next timers take them, and
    /// need not be put into the set.
    free: Vec<usize>,
    places: BTreeSet<(u64, usize)>,
    /// The clock task, and until when it sleeps.
    clock: Option<Waker>,
    sleeps_until: u64,
    has_clock: bool,
    /// Who lets others run first.
    yielded: Vec<Waker>,
}

thread_local! {
    static TIMERS: RefCell<Timers> = RefCell::new(Timers::default());
    /// The strongest interrupt so far: new waits of that kind end at once.
    static INTERRUPTED: Cell<Option<Wait>> = const { Cell::new(None) };
}

impl Timer {
    pub fn new() -> Self {
        Timer { key: TIMERS.with_borrow_mut(Timers::take) }
    }

    /// Waits for `future`, at most `limit`. When the time is up the future is dropped.
    pub fn within<F: Future>(&self, limit: Duration, wait: Wait, future: F) -> Within<'_, F> {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(NEVER);
        Within { timer: self, limit, wait, started: false, future }
    }
}

impl Default for Timer {
    fn default() -> Self {
        Timer::new()
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // The set is gone when the thread is ending.
        let _ = TIMERS.try_with(|timers| {
            timers.borrow_mut().give_back(self.key);
        });
    }
}

/// See [`Timer::within`].
#[must_use = "futures do nothing unless awaited"]
pub struct Within<'a, F> {
    timer: &'a Timer,
    limit: u64,
    wait: Wait,
    started: bool,
    future: F,
}

impl<F: Future> Future for Within<'_, F> {
    type Output = Result<F::Output, Expired>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        #[allow(unsafe_code)]
        // SAFETY: `future` is structurally pinned: it is only ever reached through this pin and is
        // dropped in place. The other fields are plain values that are not pinned.
        let (this, future) = unsafe {
            let this = self.get_unchecked_mut();
            (
                (this.timer, this.limit, this.wait, &mut this.started),
                Pin::new_unchecked(&mut this.future),
            )
        };
        let (timer, limit, wait, started) = this;
        if let Poll::Ready(output) = future.poll(cx) {
            if *started {
                TIMERS.with_borrow_mut(|timers| timers.disarm(timer.key));
            }
            return Poll::Ready(Ok(output));
        }
        TIMERS.with_borrow_mut(|timers| {
            if *started {
                return timers.check(timer.key, cx.waker());
            }
            *started = true;
            if INTERRUPTED.get() >= Some(wait) {
                return Poll::Ready(Err(Expired::Interrupted));
            }
            timers.arm(timer.key, limit, wait, cx.waker());
            Poll::Pending
        })
    }
}

impl<F> Drop for Within<'_, F> {
    fn drop(&mut self) {
        if self.started {
            // A task that is still waiting when its thread ends is dropped with the table itself.
            let _ = TIMERS.try_with(|timers| timers.borrow_mut().disarm(self.timer.key));
        }
    }
}

impl Timers {
    fn take(&mut self) -> usize {
        let unused =
            Entry { deadline: NEVER, place: NEVER, wait: Wait::Busy, fired: None, waker: None };
        self.free.pop().unwrap_or_else(|| self.entries.insert(unused))
    }

    fn give_back(&mut self, key: usize) {
        if self.free.len() < FREE_MAX
            && let Some(entry) = self.entries.get_mut(key)
        {
            *entry = Entry { deadline: NEVER, fired: None, waker: None, ..*entry };
            self.free.push(key);
            return;
        }
        let entry = self.entries.remove(key);
        if entry.place != NEVER {
            self.places.remove(&(entry.place, key));
        }
    }

    fn arm(&mut self, key: usize, limit: u64, wait: Wait, waker: &Waker) {
        #[expect(
            clippy::indexing_slicing,
            reason = "a timer has an entry as long as it lives, and a place no longer"
        )]
        let entry = &mut self.entries[key];
        // The tick already under way does not count.
        entry.deadline = now_ms().saturating_add(limit).saturating_add(1).min(NEVER - 1);
        entry.wait = wait;
        entry.fired = None;
        entry.keep_waker(waker);
        if entry.deadline < entry.place {
            let (old, new) = (entry.place, entry.deadline);
            entry.place = new;
            if old != NEVER {
                self.places.remove(&(old, key));
            }
            self.places.insert((new, key));
            if new < self.sleeps_until
                && let Some(clock) = self.clock.take()
            {
                clock.wake();
            }
        }
    }

    fn disarm(&mut self, key: usize) {
        #[expect(
            clippy::indexing_slicing,
            reason = "a timer has an entry as long as it lives, and a place no longer"
        )]
        let entry = &mut self.entries[key];
        // The waker stays: it belongs to the task that owns this timer and will wait again.
        entry.deadline = NEVER;
        entry.fired = None;
    }

    fn check<T>(&mut self, key: usize, waker: &Waker) -> Poll<Result<T, Expired>> {
        #[expect(
            clippy::indexing_slicing,
            reason = "a timer has an entry as long as it lives, and a place no longer"
        )]
        let entry = &mut self.entries[key];
        if let Some(expired) = entry.fired.take() {
            return Poll::Ready(Err(expired));
        }
        entry.keep_waker(waker);
        Poll::Pending
    }

    /// Fires what is due and puts back what was moved later; tells when to look again.
    fn expire(&mut self, now: u64) -> u64 {
        while let Some(&(place, key)) = self.places.first() {
            if place > now {
                return place;
            }
            self.places.pop_first();
            #[expect(
                clippy::indexing_slicing,
                reason = "a timer has an entry as long as it lives, and a place no longer"
            )]
            let entry = &mut self.entries[key];
            if entry.deadline <= now {
                entry.place = NEVER;
                entry.fire(Expired::Elapsed);
            } else {
                entry.place = entry.deadline;
                if entry.deadline != NEVER {
                    self.places.insert((entry.deadline, key));
                }
            }
        }
        NEVER
    }
}

impl Entry {
    fn keep_waker(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(kept) => kept.clone_from(waker),
            None => self.waker = Some(waker.clone()),
        }
    }

    fn fire(&mut self, expired: Expired) {
        self.deadline = NEVER;
        self.fired = Some(expired);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Ends every wait of this kind or a lesser one, now and from now on: a graceful quit interrupts
/// [`Wait::Idle`], a forced one [`Wait::Busy`] as well.
pub fn interrupt(wait: Wait) {
    INTERRUPTED.set(INTERRUPTED.get().max(Some(wait)));
    TIMERS.with_borrow_mut(|timers| {
        for (_, entry) in &mut timers.entries {
            if entry.deadline != NEVER && entry.wait <= wait {
                entry.fire(Expired::Interrupted);
            }
        }
    });
}

/// When the clock has something to do: [`u64::MAX`] for never.
pub fn next_ms() -> u64 {
    TIMERS.with_borrow(|timers| timers.places.first().map_or(NEVER, |&(place, _)| place))
}

/// Wakes a task when everything that is ready now has run. A task that wakes itself while it runs goes
/// to the front of monoio's queue, where it keeps all others from running: so the clock wakes it. It
/// also fires what is due, as the ring's own timers wait for a moment without any task to run.
pub fn wake_in_turn(waker: &Waker) {
    TIMERS.with_borrow_mut(|timers| {
        if !timers.has_clock {
            return waker.wake_by_ref();
        }
        timers.yielded.push(waker.clone());
        if let Some(clock) = timers.clock.take() {
            clock.wake();
        }
    });
}

fn wake_yielded() {
    let mut yielded = TIMERS.with_borrow_mut(|timers| std::mem::take(&mut timers.yielded));
    for waker in yielded.drain(..) {
        waker.wake();
    }
    // Its room is used again.
    TIMERS.with_borrow_mut(|timers| timers.yielded = yielded);
}

/// Ends waits with nothing under way ([`Wait::Idle`], [`Wait::Due`]) as an [`interrupt`] does: an
/// eighth of them, `most` at most, those that would end first. Tells how many.
pub fn reuse(most: usize) -> usize {
    TIMERS.with_borrow_mut(|timers| {
        let waits = timers.entries.iter().filter(|(_, entry)| {
            entry.deadline != NEVER && entry.fired.is_none() && entry.wait <= Wait::Due
        });
        let mut waits: Vec<_> = waits.map(|(key, entry)| (entry.deadline, key)).collect();
        let count = (waits.len() / 8).clamp(1, most).min(waits.len());
        if count < waits.len() {
            waits.select_nth_unstable(count);
        }
        for (_, key) in waits.drain(..count) {
            #[expect(clippy::indexing_slicing, reason = "of an entry just found there")]
            timers.entries[key].fire(Expired::Interrupted);
        }
        count
    })
}

/// The shard's clock: sleeps until the next deadline, for ever.
pub async fn run_clock() {
    TIMERS.with_borrow_mut(|timers| timers.has_clock = true);
    loop {
        let until = TIMERS.with_borrow_mut(|timers| {
            timers.sleeps_until = timers.expire(now_ms());
            timers.sleeps_until
        });
        let asleep = async {
            if until == NEVER {
                std::future::pending::<()>().await;
            }
            let wait = until.saturating_sub(now_ms()).max(1);
            monoio::time::sleep(Duration::from_millis(wait)).await;
        };
        let mut asleep = std::pin::pin!(asleep);
        std::future::poll_fn(|cx| {
            wake_yielded();
            TIMERS.with_borrow_mut(|timers| {
                let is_sooner = timers.places.first().is_some_and(|&(place, _)| place < until);
                if is_sooner || until <= now_ms() {
                    return Poll::Ready(());
                }
                timers.clock = Some(cx.waker().clone());
                asleep.as_mut().poll(cx)
            })
        })
        .await;
    }
}

/// [`sleep`] that the end of busy waits does not cut short: for who is ended by other means.
pub async fn sleep_through(duration: Duration) {
    let timer = Timer::new();
    let _ = timer.within(duration, Wait::Service, std::future::pending::<()>()).await;
}

/// Waits for `duration` without a connection.
pub async fn sleep(duration: Duration) {
    let timer = Timer::new();
    let _ = timer.within(duration, Wait::Busy, std::future::pending::<()>()).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn entry(key: usize) -> (u64, u64) {
        TIMERS.with_borrow(|timers| (timers.entries[key].deadline, timers.entries[key].place))
    }

    #[test]
    fn a_timer_moved_later_keeps_its_place_until_that_comes() {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let timer = Timer::new();
        let now = now_ms();
        TIMERS.with_borrow_mut(|t| t.arm(timer.key, 1000, Wait::Busy, &waker));
        let (first, place) = entry(timer.key);
        assert_eq!(first, place);
        TIMERS.with_borrow_mut(|t| t.arm(timer.key, 5000, Wait::Busy, &waker));
        assert_eq!(entry(timer.key).1, first, "moved later: not touched");
        let next = TIMERS.with_borrow_mut(|t| t.expire(now + 2000));
        assert_eq!(next, entry(timer.key).0, "looked at, and put back at its deadline");
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        TIMERS.with_borrow_mut(|t| t.arm(timer.key, 10, Wait::Busy, &waker));
        let (deadline, place) = entry(timer.key);
        assert_eq!(deadline, place, "moved earlier: put back");
        TIMERS.with_borrow_mut(|t| t.expire(now + 2000));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        drop(timer);
        TIMERS.with_borrow(|t| assert_eq!((t.free.len(), t.entries.len()), (1, 1)));
    }

    #[test]
    fn the_waits_that_end_first_are_reused() {
        let waker = Waker::noop();
        let waits = [Wait::Busy, Wait::Idle, Wait::Service].into_iter().chain([Wait::Due; 16]);
        let timers: Vec<_> = waits.map(|wait| (Timer::new(), wait)).collect();
        for (at, (timer, wait)) in timers.iter().enumerate() {
            let limit = 1000 - at as u64;
            TIMERS.with_borrow_mut(|t| t.arm(timer.key, limit, *wait, waker));
        }
        let fired = || -> Vec<usize> {
            let has_fired = |timer: &Timer| {
                TIMERS.with_borrow(|t| t.entries[timer.key].fired == Some(Expired::Interrupted))
            };
            (0..timers.len()).filter(|&at| has_fired(&timers[at].0)).collect()
        };
        assert_eq!(reuse(32), 2);
        assert_eq!(fired(), [17, 18]);
        assert_eq!((reuse(1), fired()), (1, vec![16, 17, 18]));
        while reuse(32) > 0 {}
        assert_eq!(fired(), [&[1][..], &(3..19).collect::<Vec<_>>()].concat());
    }

    #[test]
    fn no_limit_is_too_long() {
        let timer = Timer::new();
        for limit in [u64::MAX, u64::MAX - 1, u64::MAX - now_ms()] {
            TIMERS.with_borrow_mut(|t| t.arm(timer.key, limit, Wait::Busy, Waker::noop()));
            assert!(entry(timer.key).0 > now_ms() + (1 << 40));
        }
    }

    #[test]
    fn the_next_timer_takes_the_place_of_one_that_is_gone() {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let (now, gone) = (now_ms(), Timer::new());
        TIMERS.with_borrow_mut(|t| t.arm(gone.key, 1000, Wait::Busy, &waker));
        let (key, place) = (gone.key, entry(gone.key).1);
        drop(gone);
        assert_eq!(entry(key), (NEVER, place));
        assert_eq!(Arc::strong_count(&count), 2, "its waker has gone with it");
        let timer = Timer::new();
        TIMERS.with_borrow_mut(|t| t.arm(timer.key, 5000, Wait::Busy, &waker));
        assert_eq!((timer.key, entry(key).1), (key, place));
        TIMERS.with_borrow_mut(|t| t.expire(now + 2000));
        assert_eq!(count.0.load(Ordering::Relaxed), 0, "that was the other's time");
        TIMERS.with_borrow_mut(|t| t.expire(now + 7000));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        // A place that nobody has taken passes in silence.
        drop(timer);
        let timers: Vec<_> = (0..2 * FREE_MAX).map(|_| Timer::new()).collect();
        for timer in &timers {
            TIMERS.with_borrow_mut(|t| t.arm(timer.key, 1000, Wait::Busy, &waker));
        }
        drop(timers);
        TIMERS.with_borrow_mut(|t| {
            assert_eq!((t.entries.len(), t.places.len()), (FREE_MAX, FREE_MAX));
            assert_eq!(t.expire(now_ms() + 2000), NEVER);
            assert!(t.places.is_empty());
        });
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_disarmed_timer_fires_nothing() {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let timer = Timer::new();
        TIMERS.with_borrow_mut(|t| {
            t.arm(timer.key, 10, Wait::Busy, &waker);
            t.disarm(timer.key);
            assert_eq!(t.expire(now_ms() + 1000), NEVER);
        });
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_interrupt_ends_the_waits_of_its_kind() {
        std::thread::spawn(|| {
            let count = Arc::new(Count(AtomicUsize::new(0)));
            let waker = Waker::from(Arc::clone(&count));
            let (idle, busy) = (Timer::new(), Timer::new());
            TIMERS.with_borrow_mut(|t| {
                t.arm(idle.key, 1000, Wait::Idle, &waker);
                t.arm(busy.key, 1000, Wait::Busy, &waker);
            });
            interrupt(Wait::Idle);
            assert_eq!(count.0.load(Ordering::Relaxed), 1);
            let mut waiting = Box::pin(idle.within(
                Duration::from_secs(1),
                Wait::Idle,
                std::future::pending::<()>(),
            ));
            let polled = waiting.as_mut().poll(&mut Context::from_waker(&waker));
            assert_eq!(polled, Poll::Ready(Err(Expired::Interrupted)));
            drop(waiting);
            interrupt(Wait::Busy);
            assert_eq!(count.0.load(Ordering::Relaxed), 2);
        })
        .join()
        .unwrap();
    }
}
