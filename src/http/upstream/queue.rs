//! Requests that wait for a place at a server (`queue`): those of one upstream on one shard, first
//! come, first served. Among shards the one whose first request came first is called first.

use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::channel::{self, Bell, Ear};
use crate::counters::OwnCounters;
use crate::http::modules::upstream::QueueLimits;
use crate::io::select::{Signal, either};
use crate::io::timer::{Expired, Timer, Wait};

/// Who waits, in the order of their tickets. Pure.
#[derive(Debug)]
pub struct Fifo<T> {
    most: usize,
    waiting: VecDeque<(u64, T)>,
}

impl<T> Fifo<T> {
    pub fn new(most: usize) -> Self {
        Fifo { most, waiting: VecDeque::new() }
    }

    /// At the end; false when it is full.
    pub fn join(&mut self, ticket: u64, waiter: T) -> bool {
        if self.waiting.len() >= self.most {
            return false;
        }
        self.rejoin(ticket, waiter);
        true
    }

    /// Where it stood before: what came later stands behind it. It has room, as it has just left.
    pub fn rejoin(&mut self, ticket: u64, waiter: T) {
        let at = self.waiting.partition_point(|(other, _)| *other < ticket);
        self.waiting.insert(at, (ticket, waiter));
    }

    pub fn leave(&mut self, ticket: u64) {
        if let Ok(at) = self.find(ticket) {
            self.waiting.remove(at);
        }
    }

    pub fn first(&self) -> Option<(u64, &T)> {
        self.waiting.front().map(|(ticket, waiter)| (*ticket, waiter))
    }

    /// The next one behind.
    pub fn behind(&self, ticket: u64) -> Option<&T> {
        let at = self.waiting.partition_point(|(other, _)| *other <= ticket);
        self.waiting.get(at).map(|(_, waiter)| waiter)
    }

    fn find(&self, ticket: u64) -> Result<usize, usize> {
        self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket)
    }
}

/// The queues that one upstream has on all shards. It outlives a reload.
#[derive(Debug, Default)]
pub struct Line {
    /// How many have been given out.
    tickets: AtomicU64,
    /// Requests that wait, in all queues.
    waiting: AtomicUsize,
    /// Locked when a place becomes free while somebody waits.
    heads: Mutex<Vec<Arc<Head>>>,
}

/// Of one queue what the others know.
#[derive(Debug)]
struct Head {
    /// Of the first that waits; [`NOBODY`].
    ticket: AtomicU64,
    bell: Bell,
}

const NOBODY: u64 = u64::MAX;

impl Line {
    fn heads(&self) -> MutexGuard<'_, Vec<Arc<Head>>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the queue, other than this one, whose first request came before `ticket`, and of
    /// several the one whose came first. Tells whether there is one.
    fn call_older(&self, than: u64, own: Option<&Arc<Head>>) -> bool {
        let heads = self.heads();
        let others = heads.iter().filter(|head| own.is_none_or(|own| !Arc::ptr_eq(own, head)));
        let ticket = |head: &&Arc<Head>| head.ticket.load(Ordering::SeqCst);
        match others.min_by_key(ticket) {
            Some(oldest) if ticket(&oldest) < than => {
                oldest.bell.ring();
                true
            }
            _ => false,
        }
    }
}

/// The queue of one upstream on one shard.
#[derive(Debug)]
pub struct Queue {
    timeout: Duration,
    fifo: RefCell<Fifo<Rc<Signal>>>,
    line: Arc<Line>,
    /// Since somebody has waited here; `None` inside when there are no descriptors left.
    door: OnceCell<Option<Door>>,
}

/// Where other shards call.
#[derive(Debug)]
struct Door {
    head: Arc<Head>,
    ear: Ear,
}

impl Queue {
    pub fn new(limits: QueueLimits, line: Arc<Line>) -> Self {
        let fifo = RefCell::new(Fifo::new(limits.most));
        Queue { timeout: limits.timeout, fifo, line, door: OnceCell::new() }
    }

    /// How long a request may wait.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Nobody waits, on any shard.
    pub fn is_idle(&self) -> bool {
        self.line.waiting.load(Ordering::Relaxed) == 0
    }

    /// Of all requests of the upstream the order in which they came.
    pub fn ticket(&self) -> u64 {
        self.line.tickets.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins to wait; `None` when as many wait as may.
    pub fn join<'a>(&'a self, counters: &'a OwnCounters) -> Option<Place<'a>> {
        let (ticket, signal) = (self.ticket(), Rc::<Signal>::default());
        let has_joined = self.fifo.borrow_mut().join(ticket, Rc::clone(&signal));
        has_joined.then(|| self.place(ticket, signal, counters))
    }

    /// Waits again, as if it had never left.
    pub fn rejoin<'a>(&'a self, ticket: u64, counters: &'a OwnCounters) -> Place<'a> {
        let signal = Rc::<Signal>::default();
        self.fifo.borrow_mut().rejoin(ticket, Rc::clone(&signal));
        self.place(ticket, signal, counters)
    }

    fn place<'a>(
        &'a self,
        ticket: u64,
        signal: Rc<Signal>,
        counters: &'a OwnCounters,
    ) -> Place<'a> {
        self.line.waiting.fetch_add(1, Ordering::SeqCst);
        counters.queued.add(1);
        self.publish();
        // Who frees a place from now on sees that somebody waits.
        fence(Ordering::SeqCst);
        Place { queue: self, counters, ticket, signal, timer: Timer::new(), passes_on: true }
    }

    /// A server has a place that may be taken: whoever has waited longest is called.
    pub fn freed(&self) {
        fence(Ordering::SeqCst);
        if self.is_idle() {
            return;
        }
        let own = self.fifo.borrow().first().map_or(NOBODY, |(ticket, _)| ticket);
        if !self.line.call_older(own, self.head()) {
            self.call_first();
        }
    }

    /// Calls the first of this queue.
    pub fn call_first(&self) {
        if let Some((_, signal)) = self.fifo.borrow().first() {
            signal.raise();
        }
    }

    fn leave(&self, ticket: u64) {
        self.fifo.borrow_mut().leave(ticket);
        self.line.waiting.fetch_sub(1, Ordering::SeqCst);
        self.publish();
    }

    fn head(&self) -> Option<&Arc<Head>> {
        self.door.get()?.as_ref().map(|door| &door.head)
    }

    /// Tells the others who is first.
    fn publish(&self) {
        let door = self.door.get_or_init(|| {
            let (bell, ear) = channel::bell().ok()?;
            let head = Arc::new(Head { ticket: AtomicU64::new(NOBODY), bell });
            self.line.heads().push(Arc::clone(&head));
            Some(Door { head, ear })
        });
        if let Some(door) = door {
            let first = self.fifo.borrow().first().map_or(NOBODY, |(ticket, _)| ticket);
            door.head.ticket.store(first, Ordering::SeqCst);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(head) = self.head() {
            self.line.heads().retain(|other| !Arc::ptr_eq(other, head));
        }
    }
}

/// A request that waits, until dropped.
#[derive(Debug)]
pub struct Place<'a> {
    queue: &'a Queue,
    counters: &'a OwnCounters,
    ticket: u64,
    /// Raised when it is called.
    signal: Rc<Signal>,
    timer: Timer,
    /// What it was called for may be there for the next.
    passes_on: bool,
}

impl Place<'_> {
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    pub fn is_first(&self) -> bool {
        self.queue.fifo.borrow().first().is_some_and(|(ticket, _)| ticket == self.ticket)
    }

    /// Waits until it is called, at most `limit`.
    pub async fn called(&self, limit: Duration) -> Result<(), Expired> {
        let call = async {
            let door = self.queue.door.get().and_then(Option::as_ref);
            match door.filter(|_| self.is_first()) {
                Some(door) => {
                    either(self.signal.wait(), door.ear.heard()).await;
                }
                None => self.signal.wait().await,
            }
        };
        self.timer.within(limit, Wait::Busy, call).await
    }

    /// Calls another shard where a request has waited for longer; tells whether there is one.
    pub fn calls_older(&self) -> bool {
        self.queue.line.call_older(self.ticket, self.queue.head())
    }

    /// It could not use what it was called for: perhaps the next one can.
    pub fn pass_on(&self) {
        if let Some(signal) = self.queue.fifo.borrow().behind(self.ticket) {
            signal.raise();
        }
    }

    /// It has got what it waited for. The next is called if there is more.
    pub fn served(mut self, there_is_more: bool) {
        self.passes_on = there_is_more;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let was_first = self.is_first();
        self.queue.leave(self.ticket);
        self.counters.queued.sub(1);
        if was_first {
            // The first one listens to other shards.
            self.queue.call_first();
        }
        if self.passes_on {
            self.queue.freed();
        }
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One that needs no ring: only its own shard calls.
    pub fn without_door(most: usize) -> Queue {
        let limits = QueueLimits { most, timeout: Duration::from_secs(60) };
        let queue = Queue::new(limits, Arc::default());
        assert!(queue.door.set(None).is_ok());
        queue
    }

    #[test]
    fn who_comes_back_stands_where_it_stood() {
        let mut fifo = Fifo::new(2);
        assert!(fifo.join(1, 'a') && fifo.join(2, 'b') && !fifo.join(3, 'c'));
        fifo.leave(1);
        assert_eq!(fifo.first(), Some((2, &'b')));
        fifo.rejoin(1, 'a');
        assert_eq!(fifo.first(), Some((1, &'a')));
        assert_eq!((fifo.behind(1), fifo.behind(2)), (Some(&'b'), None));
        // One that is not there, or not any more.
        fifo.leave(7);
        fifo.leave(1);
        fifo.leave(1);
        assert_eq!(fifo.first(), Some((2, &'b')));
    }

    #[test]
    fn waiting_is_counted_and_bounded() {
        let counters = OwnCounters::new(Arc::default(), 0);
        let queue = without_door(2);
        assert!(queue.is_idle());
        let first = queue.join(&counters).unwrap();
        let second = queue.join(&counters).unwrap();
        assert!(queue.join(&counters).is_none());
        assert_eq!(counters.queued.get(), 2);
        assert!(first.is_first() && !second.is_first() && !queue.is_idle());
        let ticket = first.ticket();
        first.served(false);
        assert!(second.is_first());
        let first = queue.rejoin(ticket, &counters);
        assert!(first.is_first() && !second.is_first());
        drop((first, second));
        assert!(queue.is_idle() && counters.queued.get() == 0);
    }

    #[test]
    fn of_two_shards_the_one_that_waits_longer_is_called() {
        use std::io::Read;
        let line = Line::default();
        let [(one, mut heard_one), (other, mut heard_other)] = [3, 5].map(|ticket| {
            let (bell, ear) = std::os::unix::net::UnixStream::pair().unwrap();
            ear.set_nonblocking(true).unwrap();
            let head =
                Arc::new(Head { ticket: AtomicU64::new(ticket), bell: Bell::new(bell).unwrap() });
            line.heads().push(Arc::clone(&head));
            (head, ear)
        });
        let mut rings =
            || [&mut heard_one, &mut heard_other].map(|ear| ear.read(&mut [0; 9]).unwrap_or(0));
        assert!(line.call_older(NOBODY, None));
        assert_eq!(rings(), [1, 0]);
        assert!(line.call_older(9, Some(&one)));
        assert_eq!(rings(), [0, 1]);
        assert!(!line.call_older(3, Some(&other)) && !line.call_older(4, Some(&one)));
        one.ticket.store(NOBODY, Ordering::SeqCst);
        assert!(!line.call_older(5, Some(&other)) && line.call_older(6, None));
        assert_eq!(rings(), [0, 1]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join,
        Leave(usize),
        /// Leaves and comes back.
        Retry(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Join),
            2 => any::<usize>().prop_map(Step::Leave),
            1 => any::<usize>().prop_map(Step::Retry),
        ]
    }

    proptest! {
        /// Whoever comes and goes: never more than the limit, always in the order in which they came.
        #[test]
        fn order_and_bound(most in 1..6usize, steps in proptest::collection::vec(step(), 0..60)) {
            let mut fifo = Fifo::new(most);
            let mut model: Vec<u64> = Vec::new();
            for (ticket, step) in (0..).zip(steps) {
                match step {
                    Step::Join => {
                        let has_room = model.len() < most;
                        prop_assert_eq!(fifo.join(ticket, ticket), has_room);
                        if has_room {
                            model.push(ticket);
                        }
                    }
                    Step::Leave(at) if !model.is_empty() => {
                        fifo.leave(model.remove(at % model.len()));
                    }
                    Step::Retry(at) if !model.is_empty() => {
                        let ticket = model[at % model.len()];
                        fifo.leave(ticket);
                        fifo.rejoin(ticket, ticket);
                    }
                    Step::Leave(_) | Step::Retry(_) => {}
                }
                prop_assert_eq!(fifo.first().map(|(ticket, _)| ticket), model.first().copied());
                for pair in model.windows(2) {
                    prop_assert_eq!(fifo.behind(pair[0]), Some(&pair[1]));
                }
                prop_assert_eq!(model.last().and_then(|last| fifo.behind(*last)), None);
            }
        }
    }
}
