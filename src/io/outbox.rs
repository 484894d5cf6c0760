//! What the tasks of a shard send in one turn goes out together: see [`batch`](super::batch).
//!
//! A task that sends writes its bytes down and waits; when every task that was ready has had its
//! turn, a service of the shard ([`run`]) makes the sends, and each task goes on with what became of
//! its own.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use rustix::io::Errno;
use slab::Slab;

use super::batch::{LETTER_MAX, Sends};
use super::runtime::Ring;

thread_local! {
    static OUTBOX: RefCell<Option<Outbox>> = const { RefCell::new(None) };
    /// Outboxes that this thread has had.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Outbox {
    number: u64,
    sends: Sends,
    /// Whose sends they are, by their place in the batch.
    keys: Vec<usize>,
    senders: Slab<Sender>,
    service: Waker,
}

enum Sender {
    /// Its send is at this place in the batch.
    Waits(usize, Waker),
    /// The send was made.
    Told(Result<usize, Errno>),
}

impl Outbox {
    fn send(&mut self) {
        let Outbox { sends, keys, senders, .. } = self;
        sends.make(|place, _, sent| {
            // Only a send that is not made can be without its sender.
            let sender = keys.get(place).and_then(|&key| senders.get_mut(key));
            let before = sender.map(|sender| std::mem::replace(sender, Sender::Told(sent)));
            if let Some(Sender::Waits(_, waker)) = before {
                waker.wake();
            }
        });
        keys.clear();
    }
}

/// The shard's service that makes its sends, for ever. Where the kernel cannot make many at once
/// there is nothing to do, and each is made by itself; `told` hears why a ring that should be there is not,
/// or is not any more.
pub async fn run(ring: Ring, told: impl Fn(io::Error)) {
    struct Open;
    impl Drop for Open {
        fn drop(&mut self) {
            // It is gone when the thread is ending.
            let lost = OUTBOX.try_with(RefCell::take).ok().flatten();
            // They are to hear of it.
            for sender in lost.into_iter().flat_map(|outbox| outbox.senders) {
                if let (_, Sender::Waits(_, waker)) = sender {
                    waker.wake();
                }
            }
        }
    }
    let sends = match ring {
        Ring::IoUring => Sends::new().map_err(&told).ok(),
        Ring::Epoll => None,
    };
    let Some(sends) = sends else { return std::future::pending().await };
    let (keys, senders) = (Vec::new(), Slab::new());
    COUNT.set(COUNT.get().wrapping_add(1));
    let (number, service) = (COUNT.get(), Waker::noop().clone());
    OUTBOX.set(Some(Outbox { number, sends, keys, senders, service }));
    let _open = Open;
    std::future::poll_fn(|cx| {
        let lost = OUTBOX.with_borrow_mut(|outbox| {
            let outbox = outbox.as_mut()?;
            outbox.service.clone_from(cx.waker());
            outbox.send();
            outbox.sends.take_loss()
        });
        lost.into_iter().for_each(&told);
        Poll::<()>::Pending
    })
    .await;
}

/// Sends what the socket takes at once, together with what others send in this turn; `WouldBlock` when
/// that is nothing. `None`: it has to be sent by itself.
pub fn send<'a>(to: BorrowedFd<'a>, slices: &[IoSlice<'_>]) -> Option<Sending<'a>> {
    let len = slices.iter().map(|slice| slice.len()).fold(0, usize::saturating_add);
    if len > LETTER_MAX {
        return None;
    }
    OUTBOX.with_borrow_mut(|outbox| {
        let outbox = outbox.as_mut()?;
        if !outbox.sends.has_room(len) {
            outbox.send();
        }
        if outbox.sends.is_empty() {
            outbox.service.wake_by_ref();
        }
        let place = outbox.sends.add(to, slices.iter().map(|slice| &**slice));
        let key = outbox.senders.insert(Sender::Waits(place, Waker::noop().clone()));
        outbox.keys.push(key);
        Some(Sending { outbox: outbox.number, key, to: PhantomData })
    })
}

/// A send that has been written down. Dropped before it is made, it is not made.
pub struct Sending<'a> {
    /// The number of the outbox that has it.
    outbox: u64,
    key: usize,
    /// Open as long as this waits.
    to: PhantomData<BorrowedFd<'a>>,
}

impl Future for Sending<'_> {
    type Output = io::Result<usize>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        OUTBOX.with_borrow_mut(|outbox| {
            let outbox = outbox.as_mut().filter(|outbox| outbox.number == self.outbox);
            match outbox.and_then(|outbox| outbox.senders.get_mut(self.key)) {
                Some(Sender::Waits(_, waker)) => {
                    waker.clone_from(cx.waker());
                    Poll::Pending
                }
                Some(Sender::Told(sent)) => Poll::Ready(sent.map_err(io::Error::from)),
                // The shard ends, or a fault has cost it its outbox: it may have been made or not.
                None => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            }
        })
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        // It is gone when the thread is ending.
        let _ = OUTBOX.try_with(|outbox| {
            if let Some(outbox) = &mut *outbox.borrow_mut()
                && outbox.number == self.outbox
                && let Some(Sender::Waits(place, _)) = outbox.senders.try_remove(self.key)
            {
                outbox.sends.take_back(place);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::pin::pin;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::io::batch::tests::pair;
    use crate::io::runtime::spawn;
    use crate::io::select::{Signal, either};

    /// Runs it beside the service, on a ring if there is one.
    fn with_outbox(test: impl Future<Output = ()>) {
        let ring = Ring::detect().0;
        // The service first: the outbox is there when the test begins.
        ring.run(either(run(ring, |e| panic!("{e}")), test)).unwrap();
    }

    fn slices(bytes: &[u8]) -> [IoSlice<'_>; 1] {
        [IoSlice::new(bytes)]
    }

    #[test]
    fn tasks_send_together_and_each_hears_of_its_own() {
        with_outbox(async {
            let pairs: Vec<_> = (0..200).map(|_| pair()).collect();
            let (done, left) = (Rc::new(Signal::default()), Rc::new(std::cell::Cell::new(200)));
            let mut readers = Vec::new();
            for (n, (ours, theirs)) in (0..).zip(pairs) {
                readers.push(theirs);
                let (done, left) = (Rc::clone(&done), Rc::clone(&left));
                let send_all = async move {
                    for round in 0..3_u8 {
                        let bytes = [round, n];
                        let sent = match send(ours.as_fd(), &slices(&bytes)) {
                            Some(sending) => sending.await.unwrap(),
                            // This machine has no ring.
                            None => rustix::io::write(&ours, &bytes).unwrap(),
                        };
                        assert_eq!(sent, 2);
                    }
                    left.set(left.get() - 1);
                    if left.get() == 0 {
                        done.raise();
                    }
                };
                spawn(send_all, |text| panic!("{text}"));
            }
            done.wait().await;
            for (n, theirs) in (0..=u8::MAX).zip(readers) {
                let mut got = [0; 16];
                assert_eq!((&theirs).read(&mut got).unwrap(), 6);
                assert_eq!(got[..6], [0, n, 1, n, 2, n]);
            }
        });
    }

    #[test]
    fn one_that_is_dropped_before_it_is_made_is_not_made() {
        with_outbox(async {
            let ((one, _one), (other, mut reads)) = (pair(), pair());
            let Some(kept) = send(one.as_fd(), &slices(b"kept")) else { return };
            let dropped = send(other.as_fd(), &slices(b"dropped"));
            assert!(dropped.is_some());
            drop(dropped);
            // Its place among the senders is another's now.
            let next = send(one.as_fd(), &slices(b"next")).unwrap();
            let (kept, next) = crate::io::select::both(pin!(kept), pin!(next)).await;
            assert_eq!((kept.unwrap(), next.unwrap()), (4, 4));
            let nothing = reads.read(&mut [0; 8]).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        });
    }

    #[test]
    fn the_end_of_the_service_is_told_to_who_waits() {
        struct Count(AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        let ring = Ring::detect().0;
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let cx = &mut Context::from_waker(&waker);
        let (ours, _theirs) = pair();
        let mut service = Box::pin(run(ring, |e| panic!("{e}")));
        assert!(service.as_mut().poll(cx).is_pending());
        let Some(mut sending) = send(ours.as_fd(), &slices(b"lost")) else { return };
        assert!(Pin::new(&mut sending).poll(cx).is_pending());
        let before = count.0.load(Ordering::Relaxed);
        drop(service);
        assert_eq!(count.0.load(Ordering::Relaxed), before + 1);
        let Poll::Ready(Err(lost)) = Pin::new(&mut sending).poll(cx) else { panic!("it waits") };
        assert_eq!(lost.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[test]
    fn what_is_long_or_has_no_service_is_sent_by_itself() {
        let (ours, _theirs) = pair();
        assert!(send(ours.as_fd(), &slices(b"x")).is_none());
        with_outbox(async {
            assert!(send(ours.as_fd(), &slices(&vec![0; LETTER_MAX + 1])).is_none());
        });
        assert!(send(ours.as_fd(), &slices(b"x")).is_none(), "the shard has ended");
    }
}
