//! Futures on blocks of memory that a thread uses again and again: what a request needs while it is
//! answered is some KiB, which an idle connection should not hold, and which is not worth a trip to the
//! allocator each time.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

/// Bytes of a block.
const BLOCK: usize = 6656;
const ALIGNMENT: usize = 64;
/// Blocks that a thread keeps; more go back to the allocator.
const KEPT_MAX: usize = 128;

const LAYOUT: Layout = match Layout::from_size_align(BLOCK, ALIGNMENT) {
    Ok(layout) => layout,
    Err(_) => panic!("a block has a size and an alignment"),
};

/// A future in a block, which goes back when it is done with.
#[derive(Debug)]
pub struct Pooled<F> {
    at: NonNull<F>,
}

impl<F: Future> Pooled<F> {
    /// The future is made in its place, by a closure: moving it there would cost more than the block.
    pub fn new(make: impl FnOnce() -> F) -> Self {
        const {
            assert!(size_of::<F>() <= BLOCK && align_of::<F>() <= ALIGNMENT, "it fits in a block");
        }
        let block = take();
        let at = block.cast::<F>();
        #[allow(unsafe_code)]
        // SAFETY: the block is large and aligned enough, and nobody else has it.
        unsafe {
            at.write(make());
        }
        Pooled { at }
    }
}

impl<F: Future> Future for Pooled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        #[allow(unsafe_code)]
        // SAFETY: the future was written by `new`, is `self`'s alone, and stays at its place until it
        // is dropped there.
        let future = unsafe { Pin::new_unchecked(self.at.as_mut()) };
        future.poll(cx)
    }
}

impl<F> Drop for Pooled<F> {
    fn drop(&mut self) {
        /// Gives the block back even when the future's own drop panics.
        struct GiveBack(NonNull<u8>);
        impl Drop for GiveBack {
            fn drop(&mut self) {
                give_back(self.0);
            }
        }
        let _block = GiveBack(self.at.cast());
        #[allow(unsafe_code)]
        // SAFETY: the future was written by `new` and is dropped nowhere else.
        unsafe {
            self.at.drop_in_place();
        }
    }
}

/// Blocks that nobody has at the moment.
#[derive(Default)]
struct Free(Vec<NonNull<u8>>);

impl Drop for Free {
    fn drop(&mut self) {
        self.0.drain(..).for_each(free);
    }
}

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

/// Frees what this shard keeps for reuse.
pub fn release_kept() {
    let kept = FREE.with(|free| std::mem::take(&mut *free.borrow_mut()));
    drop(kept);
}

fn take() -> NonNull<u8> {
    let kept = FREE.try_with(|free| free.borrow_mut().0.pop()).ok().flatten();
    kept.unwrap_or_else(|| {
        #[allow(unsafe_code)]
        // SAFETY: a block has a size.
        let block = unsafe { alloc(LAYOUT) };
        NonNull::new(block).unwrap_or_else(|| handle_alloc_error(LAYOUT))
    })
}

fn give_back(block: NonNull<u8>) {
    let is_kept = FREE.try_with(|free| {
        let blocks = &mut free.borrow_mut().0;
        let is_kept = blocks.len() < KEPT_MAX;
        if is_kept {
            blocks.push(block);
        }
        is_kept
    });
    if is_kept != Ok(true) {
        free(block);
    }
}

fn free(block: NonNull<u8>) {
    #[allow(unsafe_code)]
    // SAFETY: every block comes from `take`, and who gives it back has it no more.
    unsafe {
        dealloc(block.as_ptr(), LAYOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_block_is_used_again_and_what_it_held_is_dropped() {
        let held = Rc::new(());
        let mut places = Vec::new();
        for done in [true, false] {
            let inner = Rc::clone(&held);
            let mut pooled = Pooled::new(|| async move {
                if !done {
                    std::future::pending::<()>().await;
                }
                Rc::strong_count(&inner)
            });
            places.push(pooled.at.cast::<u8>());
            let polled = Pin::new(&mut pooled).poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled, if done { Poll::Ready(2) } else { Poll::Pending });
            drop(pooled);
            assert_eq!(Rc::strong_count(&held), 1);
        }
        assert_eq!(places[0], places[1]);
    }

    #[test]
    fn a_panic_gives_the_block_back() {
        let before = FREE.with(|free| free.borrow().0.len());
        let panicked = std::panic::catch_unwind(|| {
            let mut pooled = Pooled::new(|| async { panic!("as meant") });
            Pin::new(&mut pooled).poll(&mut Context::from_waker(Waker::noop()))
        });
        assert!(panicked.is_err());
        assert_eq!(FREE.with(|free| free.borrow().0.len()), before.max(1));
    }
}
