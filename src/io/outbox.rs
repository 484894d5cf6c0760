//! What the tasks of a shard send in one turn goes out together: see [`batch`](super::batch).
//!
//! A task that sends writes its bytes down and waits; when every task that was ready has had its
//! turn, a service of the shard ([`run`]) makes the sends, and each task goes on with what became of
//! its own.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::batch::Sends;
use super::runtime::Ring;

/// A longer send is made by itself: it is dear enough for its system call not to matter, and its
/// bytes are not to be moved.
pub const LETTER_MAX: usize = 8 << 10;

thread_local! {
    static OUTBOX: RefCell<Option<Outbox>> = const { RefCell::new(None) };
}

struct Outbox {
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
    Told(io::Result<usize>),
}

impl Outbox {
    fn send(&mut self) {
        let Outbox { sends, keys, senders, .. } = self;
        sends.make(|place, _, sent| {
            let sender = keys.get(place).and_then(|&key| senders.get_mut(key));
            // One who has gone has taken its send back, and its key may be another's.
            if let Some(sender) = sender
                && matches!(sender, Sender::Waits(at, _) if *at == place)
                && let Sender::Waits(_, waker) = std::mem::replace(sender, Sender::Told(sent))
            {
                waker.wake();
            }
        });
        keys.clear();
    }
}

/// The shard's service that makes its sends, for ever. Where the kernel cannot make many at once
/// there is nothing to do, and each is made by itself.
pub async fn run(ring: Ring) {
    struct Open;
    impl Drop for Open {
        fn drop(&mut self) {
            // It is gone when the thread is ending.
            let _ = OUTBOX.try_with(RefCell::take);
        }
    }
    let sends = match ring {
        Ring::IoUring => Sends::new().ok(),
        Ring::Epoll => None,
    };
    let Some(sends) = sends else { return std::future::pending().await };
    let (keys, senders) = (Vec::new(), Slab::new());
    let outbox = Outbox { sends, keys, senders, service: Waker::noop().clone() };
    OUTBOX.set(Some(outbox));
    let _open = Open;
    std::future::poll_fn(|cx| {
        OUTBOX.with_borrow_mut(|outbox| {
            if let Some(outbox) = outbox {
                outbox.service.clone_from(cx.waker());
                outbox.send();
            }
        });
        Poll::<()>::Pending
    })
    .await;
}

/// Sends what the socket takes at once, together with what others send in this turn; `WouldBlock` when
/// that is nothing. `None`: it has to be sent by itself.
pub fn send(to: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Option<Sending> {
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
        Some(Sending { key })
    })
}

/// A send that has been written down. Dropped before it is made, it is not made.
pub struct Sending {
    key: usize,
}

impl Future for Sending {
    type Output = io::Result<usize>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        OUTBOX.with_borrow_mut(|outbox| {
            let outbox = outbox.as_mut();
            match outbox.and_then(|outbox| outbox.senders.get_mut(self.key)) {
                Some(Sender::Waits(_, waker)) => {
                    waker.clone_from(cx.waker());
                    Poll::Pending
                }
                Some(told @ Sender::Told(_)) => {
                    let gone = Sender::Told(Err(io::ErrorKind::NotConnected.into()));
                    match std::mem::replace(told, gone) {
                        Sender::Told(sent) => Poll::Ready(sent),
                        Sender::Waits(..) => Poll::Pending,
                    }
                }
                // The shard ends.
                None => Poll::Ready(Err(io::ErrorKind::Interrupted.into())),
            }
        })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // It is gone when the thread is ending.
        let _ = OUTBOX.try_with(|outbox| {
            if let Some(outbox) = &mut *outbox.borrow_mut()
                && let Some(Sender::Waits(place, _)) = outbox.senders.try_remove(self.key)
            {
                outbox.sends.take_back(place);
            }
        });
    }
}
