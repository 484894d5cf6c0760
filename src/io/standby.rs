//! Waiting elsewhere than in the ring, while nobody but the one who wants that has anything to do.
//!
//! A shard waits in its ring, and hears of a [poller](super::poller) by the poll of its bell: an operation
//! that is made, woken, told and made again with each batch of events, and costs more than taking a small
//! batch does. While only tunnels have something to do it is therefore the other way round: the thread
//! waits in their poller, which has the ring among its descriptors.
//!
//! monoio does not tell when it is about to wait. But it polls the main future, where that is woken, at
//! the end of each round of tasks, and a round leaves none that is ready behind unless more than
//! [`ROUND_SURE`] have run in it. So the task that wants to wait asks, and the main future answers: after
//! a round as short as that nobody has anything to do.

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::{runtime, timer};

/// monoio ends a round when one task more than twice as many have run as were ready when it began: so
/// none is ready at the end of one in which no more have run than these.
const ROUND_SURE: u64 = 2;
/// When a wait was not ended by what it was for, so many are left to the ring. One at least: only there does
/// monoio look at its timers. (Tests are for the others.)
const RELUCTANCE: u32 = if cfg!(test) { 1 } else { 16 };
/// The longest wait, in milliseconds: so late at most is whatever should have ended one and has not.
const LONGEST_MS: u64 = 1000;

/// What has become of a wish to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stood {
    /// There is something for it to do.
    Called,
    /// It has waited, and the others may have something to do.
    Relieved,
    /// It has not waited: it cannot, or the others have something to do.
    Refused,
}

/// The waits of one task.
#[derive(Default)]
pub struct Standby {
    /// While there is one that answers.
    main: RefCell<Option<Waker>>,
    /// How many tasks had run when the main future was polled last.
    seen: Cell<u64>,
    asked: RefCell<Option<Asked>>,
    answer: Cell<Option<Answer>>,
    reluctance: Cell<u32>,
}

struct Asked {
    by: Waker,
    until_ms: u64,
}

#[derive(Clone, Copy)]
enum Answer {
    Stood(Stood),
    /// It cannot be told whether anybody is ready: the round was too long, or the main future has run.
    Unproven,
}

impl Standby {
    /// Waits until the given time at most ([`timer::now_ms`]). False: there is nothing to do for it, and it
    /// has not waited.
    pub async fn wait(&self, until_ms: u64) -> bool {
        if let Some(left) = self.reluctance.get().checked_sub(1) {
            self.reluctance.set(left);
            return false;
        }
        let stood = match self.ask(until_ms).await {
            Answer::Stood(stood) => stood,
            // The round that began with the answer is a short one, unless others run in it.
            Answer::Unproven => match self.ask(until_ms).await {
                Answer::Stood(stood) => stood,
                Answer::Unproven => Stood::Refused,
            },
        };
        if stood != Stood::Called {
            self.reluctance.set(RELUCTANCE);
        }
        stood != Stood::Refused
    }

    async fn ask(&self, until_ms: u64) -> Answer {
        self.answer.set(None);
        std::future::poll_fn(|cx| {
            if let Some(answer) = self.answer.take() {
                return Poll::Ready(answer);
            }
            let Some(main) = &*self.main.borrow() else {
                return Poll::Ready(Answer::Stood(Stood::Refused));
            };
            self.asked.replace(Some(Asked { by: cx.waker().clone(), until_ms }));
            main.wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// What is to be the runtime's main future: the given one, and this task's waits, which `wait` makes
    /// in its stead. They have to end at the given time, and when the ring has completed something; and
    /// whatever is to be submitted to it has to be before they begin.
    pub async fn beside<F: Future>(
        &self,
        main: F,
        mut wait: impl FnMut(u64) -> Stood,
    ) -> F::Output {
        let mut main = pin!(main);
        let answering = Answering(self);
        let mut noticed = None;
        std::future::poll_fn(|cx| {
            let noticed = noticed.get_or_insert_with(|| {
                self.main.replace(Some(cx.waker().clone()));
                Noticed::new(cx.waker().clone())
            });
            let runs = runtime::runs();
            let round = runs.saturating_sub(self.seen.replace(runs));
            let polled = noticed.poll(main.as_mut());
            if let Some(Poll::Ready(output)) = polled {
                return Poll::Ready(output);
            }
            answering.answer(|asked| {
                if polled.is_some() || round > ROUND_SURE {
                    return Answer::Unproven;
                }
                if runtime::is_paused() {
                    return Answer::Stood(Stood::Refused);
                }
                let longest_ms = timer::now_ms().saturating_add(LONGEST_MS);
                let until_ms = asked.until_ms.min(timer::next_ms()).min(longest_ms);
                Answer::Stood(wait(until_ms))
            });
            Poll::Pending
        })
        .await
    }
}

/// The main future, that answers: a question that is open when it goes is refused, as all later ones are.
struct Answering<'a>(&'a Standby);

impl Answering<'_> {
    fn answer(&self, answer: impl FnOnce(&Asked) -> Answer) {
        let Some(asked) = self.0.asked.take() else { return };
        self.0.answer.set(Some(answer(&asked)));
        asked.by.wake();
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.main.replace(None);
        self.answer(|_| Answer::Stood(Stood::Refused));
    }
}

/// Polls a future when it has been woken itself, and not when what is beside it has.
struct Noticed {
    woken: Arc<Woken>,
    waker: Waker,
}

struct Woken {
    is_woken: AtomicBool,
    both: Waker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.both.wake_by_ref();
    }
}

impl Noticed {
    /// `both` wakes the two of them. The future's first poll is due.
    fn new(both: Waker) -> Self {
        let woken = Arc::new(Woken { is_woken: AtomicBool::new(true), both });
        Noticed { waker: Waker::from(Arc::clone(&woken)), woken }
    }

    fn poll<F: Future>(&self, future: Pin<&mut F>) -> Option<Poll<F::Output>> {
        let is_woken = self.woken.is_woken.swap(false, Ordering::AcqRel);
        is_woken.then(|| future.poll(&mut Context::from_waker(&self.waker)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::io::poller::{Poller, Token};
    use crate::io::runtime::{Ring, spawn};
    use crate::io::select::Signal;
    use crate::io::{Buffer, Stream};

    /// A task's poller, which has one socket in it, and how the task's waits have ended.
    struct Stand {
        standby: Standby,
        poller: RefCell<Poller>,
        socket: UnixStream,
        called: Cell<usize>,
        relieved: Cell<usize>,
    }

    impl Stand {
        fn wait(&self, until_ms: u64) -> Stood {
            let poller = &mut *self.poller.borrow_mut();
            assert!(poller.begin_waits());
            let stood = poller.wait(until_ms);
            poller.end_waits();
            let count = if stood == Stood::Called { &self.called } else { &self.relieved };
            count.set(count.get() + 1);
            stood
        }

        /// Sends back each byte, until there are no more.
        async fn echo(&self) {
            let bell = self.poller.borrow().bell().unwrap();
            let (mut events, mut byte) = (Vec::new(), [0]);
            loop {
                if !self.standby.wait(u64::MAX).await {
                    bell.readable_unlimited().await.unwrap();
                }
                self.poller.borrow_mut().take(&mut events).unwrap();
                for event in events.drain(..) {
                    while (&self.socket).read(&mut byte).is_ok_and(|count| count == 1) {
                        (&self.socket).write_all(&byte).unwrap();
                    }
                    if event.ended {
                        return;
                    }
                }
            }
        }
    }

    /// Runs `main` beside an echo, whose other end and end it is given. Where there is no ring, nothing.
    fn beside<F: Future<Output = ()>>(main: impl FnOnce(Rc<Stand>, UnixStream, Rc<Signal>) -> F) {
        let (Ring::IoUring, _) = Ring::detect() else { return };
        let ran = Ring::IoUring.run(async {
            let poller = Poller::new(Ring::IoUring).unwrap();
            assert!(poller.knows_ring());
            let (theirs, socket) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            poller.watch(socket.as_fd(), Token(1)).unwrap();
            let stand = Rc::new(Stand {
                standby: Standby::default(),
                poller: RefCell::new(poller),
                socket,
                called: Cell::default(),
                relieved: Cell::default(),
            });
            let ended = Rc::new(Signal::default());
            let (echo, ends) = (Rc::clone(&stand), Rc::clone(&ended));
            task(timer::run_clock());
            task(async move {
                echo.echo().await;
                ends.raise();
            });
            let main = main(Rc::clone(&stand), theirs, ended);
            stand.standby.beside(main, |until_ms| stand.wait(until_ms)).await;
        });
        ran.unwrap();
    }

    fn task(future: impl Future<Output = ()> + 'static) {
        spawn(future, |text| panic!("{text}"));
    }

    fn ask(echo: &mut UnixStream, byte: u8) {
        let mut answer = [0];
        echo.write_all(&[byte]).unwrap();
        echo.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [byte]);
    }

    /// Far less than the longest wait.
    const SOON: Duration = Duration::from_millis(LONGEST_MS / 4);

    #[test]
    fn it_is_called_for_what_its_poller_has() {
        beside(|stand, mut theirs, ended| async move {
            let asks = std::thread::spawn(move || (0..200).for_each(|byte| ask(&mut theirs, byte)));
            ended.wait().await;
            asks.join().unwrap();
            assert!(stand.called.get() > 0, "relieved {} times", stand.relieved.get());
        });
    }

    #[test]
    fn a_socket_of_others_is_not_kept_waiting() {
        beside(|stand, mut theirs, ended| async move {
            let (mut other, socket) = UnixStream::pair().unwrap();
            let begun = Instant::now();
            let asks = std::thread::spawn(move || {
                for byte in 0..100 {
                    ask(&mut theirs, byte);
                    ask(&mut other, byte);
                }
            });
            task(async move {
                let socket = Stream::new(socket.into()).unwrap();
                loop {
                    let (received, bytes) = socket.recv_unlimited(Buffer::with_capacity(1)).await;
                    if received.unwrap() == 0 {
                        break;
                    }
                    assert_eq!(socket.try_send(&[IoSlice::new(bytes.as_slice())]).unwrap(), 1);
                }
            });
            ended.wait().await;
            asks.join().unwrap();
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
            assert!(stand.relieved.get() > 0, "called {} times", stand.called.get());
        });
    }

    #[test]
    fn a_timer_of_others_is_not_kept_waiting() {
        beside(|stand, mut theirs, _| async move {
            let begun = Instant::now();
            for _ in 0..10 {
                theirs.write_all(b"x").unwrap();
                timer::sleep(Duration::from_millis(5)).await;
            }
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
            assert!(stand.relieved.get() > 0, "called {} times", stand.called.get());
        });
    }

    #[test]
    fn who_pauses_is_not_kept_waiting() {
        beside(|_, mut theirs, _| async move {
            let begun = Instant::now();
            for _ in 0..10 {
                theirs.write_all(b"x").unwrap();
                runtime::pause(Duration::from_millis(5)).await;
            }
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        });
    }

    /// So many that rounds end while some are ready.
    #[test]
    fn tasks_that_wake_one_another_are_not_kept_waiting() {
        beside(|_, mut theirs, _| async move {
            let signals: Vec<_> = (0..1000).map(|_| Rc::new(Signal::default())).collect();
            for (from, to) in signals.iter().zip(signals.iter().skip(1)) {
                let (from, to) = (Rc::clone(from), Rc::clone(to));
                task(async move {
                    loop {
                        from.wait().await;
                        to.raise();
                    }
                });
            }
            let begun = Instant::now();
            for _ in 0..10 {
                theirs.write_all(b"x").unwrap();
                signals[0].raise();
                signals[999].wait().await;
            }
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        });
    }

    #[test]
    fn nobody_waits_when_the_main_future_has_gone() {
        let (Ring::IoUring, _) = Ring::detect() else { return };
        let ran = Ring::IoUring.run(async {
            let standby = Rc::new(Standby::default());
            let refused = Rc::new(Signal::default());
            let (asks, raises) = (Rc::clone(&standby), Rc::clone(&refused));
            task(async move {
                // The first is asked while there is nobody yet.
                while asks.wait(u64::MAX).await {}
                assert!(asks.main.borrow().is_none());
                raises.raise();
            });
            refused.wait().await;
            standby.beside(std::future::ready(()), |_| unreachable!()).await;
            assert!(!standby.wait(u64::MAX).await);
        });
        ran.unwrap();
    }
}
