//! Waiting for two things at once.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use super::timer;

/// Which of two futures was ready first.
#[derive(Debug)]
pub enum Either<A, B> {
    First(A),
    Second(B),
}

/// Waits for whichever is ready first and drops the other: so both must be futures that lose
/// nothing when dropped (readiness, timers), or be passed as `&mut` of something pinned.
pub async fn either<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let mut a = pin!(a);
    let mut b = pin!(b);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::First(output));
        }
        b.as_mut().poll(cx).map(Either::Second)
    })
    .await
}

/// Waits until both are done.
pub async fn both<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|cx| {
        if first.is_none()
            && let Poll::Ready(output) = a.as_mut().poll(cx)
        {
            first = Some(output);
        }
        if second.is_none()
            && let Poll::Ready(output) = b.as_mut().poll(cx)
        {
            second = Some(output);
        }
        match (first.take(), second.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (first, second) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// Lets every other ready task of the shard run first, and what has come and what is due meanwhile be
/// noticed.
pub async fn yield_now() {
    struct Yield(bool);
    impl Future for Yield {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            if std::mem::replace(&mut self.0, true) {
                return Poll::Ready(());
            }
            timer::wake_in_turn(cx.waker());
            Poll::Pending
        }
    }
    Yield(false).await;
}

/// What a future comes to. When that is there at once, the others have their turn before it is told:
/// who finds something whenever it looks would not wait at all.
pub async fn in_turn<F: Future>(mut future: Pin<&mut F>) -> F::Output {
    let mut has_waited = false;
    let output = std::future::poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        has_waited |= polled.is_pending();
        polled
    })
    .await;
    if !has_waited {
        yield_now().await;
    }
    output
}

/// A one-place signal between two tasks of a shard.
#[derive(Debug, Default)]
pub struct Signal {
    raised: std::cell::Cell<bool>,
    waiter: std::cell::RefCell<Option<std::task::Waker>>,
}

impl Signal {
    pub fn raise(&self) {
        if !self.raised.replace(true)
            && let Some(waiter) = self.waiter.borrow_mut().take()
        {
            waiter.wake();
        }
    }

    /// Lowers it. False: it was not raised.
    pub fn lower(&self) -> bool {
        self.raised.replace(false)
    }

    /// Waits until it has been raised, and lowers it.
    pub async fn wait(&self) {
        std::future::poll_fn(|cx| {
            if self.lower() {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::io::Stream;
    use crate::io::runtime::{Ring, spawn};

    type GiveTurn = fn() -> Pin<Box<dyn Future<Output = ()>>>;

    /// A task always has something to do: meanwhile a timer of another's fires, and a byte comes to a
    /// third. It gives up after far more time than that can take.
    fn others_run(ring: Ring, turn: GiveTurn) {
        let both_ran = ring.run(async {
            spawn(timer::run_clock(), |_| {});
            let (slept, heard) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
            let (mut sender, receiver) = UnixStream::pair().unwrap();
            receiver.set_nonblocking(true).unwrap();
            let (sets_slept, sets_heard) = (Rc::clone(&slept), Rc::clone(&heard));
            spawn(
                async move {
                    timer::sleep(Duration::from_millis(20)).await;
                    sets_slept.set(true);
                    sender.write_all(b"x").unwrap();
                },
                |_| {},
            );
            spawn(
                async move {
                    let stream = Stream::new(receiver.into()).unwrap();
                    stream.readable_unlimited().await.unwrap();
                    sets_heard.set(true);
                },
                |_| {},
            );
            let (done, seen) = (Rc::new(Signal::default()), Rc::new(Cell::new((false, false))));
            let (raises, sets_seen) = (Rc::clone(&done), Rc::clone(&seen));
            spawn(
                async move {
                    let until = timer::now_ms() + 5000;
                    while !(slept.get() && heard.get()) && timer::now_ms() < until {
                        turn().await;
                    }
                    sets_seen.set((slept.get(), heard.get()));
                    raises.raise();
                },
                |_| {},
            );
            done.wait().await;
            seen.get()
        });
        assert_eq!(both_ran.unwrap(), (true, true), "a timer, and a socket, with {ring:?}");
    }

    #[test]
    fn a_task_that_yields_gives_others_their_turn() {
        for ring in [Ring::detect().0, Ring::Epoll] {
            // What is due, and the clock, are a thread's.
            let turns: [GiveTurn; 2] =
                [|| Box::pin(yield_now()), || Box::pin(async { in_turn(pin!(async {})).await })];
            for turn in turns {
                std::thread::spawn(move || others_run(ring, turn)).join().unwrap();
            }
        }
    }
}
