//! Turns at something that only a few tasks of a shard may do at once; who wants one more waits for it,
//! first come, first served.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Clones share the turns.
#[derive(Debug, Clone)]
pub struct Turns(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    free: Cell<usize>,
    /// Bounded by the tasks there are: each waits once.
    waiting: RefCell<VecDeque<Rc<Waiting>>>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The turn that was free has been given to this one.
    is_called: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A turn: over when it is dropped.
#[derive(Debug)]
pub struct Turn(Rc<Shared>);

impl Turns {
    pub fn new(count: usize) -> Self {
        Turns(Rc::new(Shared { free: Cell::new(count), waiting: RefCell::default() }))
    }

    /// Waits for a turn. Whoever gives up waiting loses its place and nothing else.
    pub async fn take(&self) -> Turn {
        let shared = &self.0;
        if let Some(left) = shared.free.get().checked_sub(1) {
            shared.free.set(left);
        } else {
            let place = Place { shared, waiting: Rc::default() };
            shared.waiting.borrow_mut().push_back(Rc::clone(&place.waiting));
            std::future::poll_fn(|cx| {
                // Called once, and not to be called again.
                if place.waiting.is_called.replace(false) {
                    return Poll::Ready(());
                }
                *place.waiting.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
        }
        Turn(Rc::clone(shared))
    }
}

impl Shared {
    /// One who waits has it before anybody who comes now.
    fn give_back(&self) {
        let next = self.waiting.borrow_mut().pop_front();
        match next {
            Some(waiting) => {
                waiting.is_called.set(true);
                if let Some(waker) = waiting.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
            None => self.free.set(self.free.get().saturating_add(1)),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// A place among those who wait.
struct Place<'a> {
    shared: &'a Shared,
    waiting: Rc<Waiting>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.waiting.is_called.get() {
            // It came too late.
            self.shared.give_back();
        } else {
            self.shared.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.waiting));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn is_free(turns: &Turns) -> bool {
        poll(pin!(turns.take())).is_ready()
    }

    #[test]
    fn so_many_and_then_in_order() {
        let turns = Turns::new(1);
        let Poll::Ready(turn) = poll(pin!(turns.take())) else { panic!("one is free") };
        let (mut first, mut second) = (pin!(turns.take()), pin!(turns.take()));
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        drop(turn);
        assert!(poll(second.as_mut()).is_pending(), "it is the first one's");
        let Poll::Ready(turn) = poll(first.as_mut()) else { panic!("it was called") };
        assert!(!is_free(&turns));
        drop(turn);
        assert!(!is_free(&turns), "one who comes now is not before one who waits");
        let Poll::Ready(turn) = poll(second.as_mut()) else { panic!("it was called") };
        drop(turn);
        assert!(is_free(&turns));
    }

    #[test]
    fn who_gives_up_loses_nobody_a_turn() {
        let turns = Turns::new(1);
        let Poll::Ready(turn) = poll(pin!(turns.take())) else { panic!("one is free") };
        {
            let (mut waits, mut called) = (pin!(turns.take()), pin!(turns.take()));
            assert!(poll(called.as_mut()).is_pending() && poll(waits.as_mut()).is_pending());
            drop(turn);
        }
        assert!(is_free(&turns), "one had been called, one had not");
        assert!(turns.0.waiting.borrow().is_empty());
    }
}
