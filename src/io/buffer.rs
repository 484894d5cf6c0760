//! Buffers that a ring operation can own, and the shard's pool of them.

use std::cell::RefCell;
use std::fmt;
use std::mem::MaybeUninit;

use monoio::buf::{IoBuf, IoBufMut};

/// Buffers of one size kept for reuse by a shard; what is over is freed.
const KEPT_PER_SIZE: usize = 64;
/// Sizes that are kept. A larger request is an allocation of its own.
const SIZES: [usize; 5] = [1 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10];

thread_local! {
    static POOL: RefCell<[Vec<Vec<u8>>; SIZES.len()]> = const {
        RefCell::new([const { Vec::new() }; SIZES.len()])
    };
}

/// Frees what this shard keeps for reuse.
pub fn release_kept() {
    POOL.with_borrow_mut(|pool| pool.iter_mut().for_each(|kept| drop(std::mem::take(kept))));
}

/// Bytes received and not yet consumed, with room behind them.
///
/// Invariant: `start <= data.len() <= data.capacity()`. A receive appends at `data.len()`.
pub struct Buffer {
    data: Vec<u8>,
    start: usize,
    /// The most that the next receive may append.
    receive_max: usize,
}

impl Buffer {
    /// A buffer of at least `capacity` bytes, from the pool when its size is one that is kept.
    #[expect(clippy::indexing_slicing, reason = "class is a place in SIZES, and POOL is as long")]
    pub fn with_capacity(capacity: usize) -> Self {
        let Some(class) = SIZES.iter().position(|&size| capacity <= size) else {
            return Buffer::of(Vec::with_capacity(capacity));
        };
        let kept = POOL.with_borrow_mut(|pool| pool[class].pop());
        Buffer::of(kept.unwrap_or_else(|| Vec::with_capacity(SIZES[class])))
    }

    const fn of(data: Vec<u8>) -> Self {
        Buffer { data, start: 0, receive_max: usize::MAX }
    }

    /// Lets a receive append no more than `most` bytes, until the next call.
    pub fn limit_receive(&mut self, most: u64) {
        self.receive_max = usize::try_from(most).unwrap_or(usize::MAX);
    }

    /// A buffer without memory.
    pub const fn empty() -> Self {
        Buffer::of(Vec::new())
    }

    #[expect(clippy::indexing_slicing, reason = "start <= data.len(), the invariant")]
    pub fn as_slice(&self) -> &[u8] {
        &self.data[self.start..]
    }

    #[expect(clippy::indexing_slicing, reason = "start <= data.len(), the invariant")]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.data[self.start..]
    }

    #[expect(clippy::arithmetic_side_effects, reason = "start <= data.len(), the invariant")]
    pub fn len(&self) -> usize {
        self.data.len() - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that a receive can still append.
    #[expect(clippy::arithmetic_side_effects, reason = "data.len() <= data.capacity()")]
    pub fn spare(&self) -> usize {
        self.data.capacity() - self.data.len()
    }

    /// Where a receive appends: no more than it may.
    #[expect(clippy::indexing_slicing, reason = "len <= room.len()")]
    pub fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        let room = self.data.spare_capacity_mut();
        let len = room.len().min(self.receive_max);
        &mut room[..len]
    }

    pub fn capacity(&self) -> usize {
        self.data.capacity()
    }

    /// Drops the first `n` bytes.
    pub fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.data.len());
        if self.start == self.data.len() {
            self.clear();
        }
    }

    /// Keeps only the first `n` bytes.
    pub fn truncate(&mut self, n: usize) {
        self.data.truncate(self.start.saturating_add(n));
    }

    /// Keeps only the first `n` bytes, and no more memory than they need.
    pub fn keep_only(&mut self, n: usize) {
        self.truncate(n);
        let mut smaller = Buffer::with_capacity(self.len());
        if smaller.capacity() < self.capacity() {
            smaller.extend(self.as_slice());
            *self = smaller;
        }
    }

    pub fn clear(&mut self) {
        self.data.clear();
        self.start = 0;
    }

    /// Moves the content to the front, so that all room is behind it.
    pub fn compact(&mut self) {
        if self.start > 0 {
            self.data.copy_within(self.start.., 0);
            #[expect(
                clippy::arithmetic_side_effects,
                reason = "start <= data.len(), the invariant"
            )]
            self.data.truncate(self.data.len() - self.start);
            self.start = 0;
        }
    }

    /// Makes the capacity at least `capacity`, keeping the content.
    pub fn grow(&mut self, capacity: usize) {
        self.compact();
        if self.data.capacity() < capacity {
            let mut larger = Buffer::with_capacity(capacity);
            larger.data.extend_from_slice(&self.data);
            *self = larger;
        }
    }

    /// Appends, growing when there is no room.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.spare() < bytes.len() {
            #[expect(
                clippy::arithmetic_side_effects,
                reason = "lengths in memory: isize::MAX at most, each"
            )]
            self.grow(self.len() + bytes.len());
        }
        self.data.extend_from_slice(bytes);
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer::empty()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let capacity = self.data.capacity();
        if capacity == 0 {
            return;
        }
        if let Some(class) = SIZES.iter().position(|&size| size == capacity) {
            let mut data = std::mem::take(&mut self.data);
            data.clear();
            // The pool is gone when the thread is ending: the memory is freed then.
            let _ = POOL.try_with(|pool| {
                #[expect(
                    clippy::indexing_slicing,
                    reason = "class is a place in SIZES, and POOL is as long"
                )]
                let kept = &mut pool.borrow_mut()[class];
                if kept.len() < KEPT_PER_SIZE {
                    kept.push(data);
                }
            });
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len(), self.data.capacity())
    }
}

// SAFETY: the vector's heap block does not move while the buffer is owned by an operation, and the
// initialised part handed out is exactly its content.
#[allow(unsafe_code)]
unsafe impl IoBuf for Buffer {
    fn read_ptr(&self) -> *const u8 {
        self.as_slice().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: the pointer is to the spare capacity behind the content, `bytes_total` is its size, and
// `set_init` is called by the driver with the number of bytes that the kernel wrote there.
#[allow(unsafe_code)]
unsafe impl IoBufMut for Buffer {
    fn write_ptr(&mut self) -> *mut u8 {
        self.data.spare_capacity_mut().as_mut_ptr().cast()
    }

    fn bytes_total(&mut self) -> usize {
        self.spare().min(self.receive_max)
    }

    unsafe fn set_init(&mut self, n: usize) {
        debug_assert!(n <= self.spare());
        #[expect(
            clippy::arithmetic_side_effects,
            reason = "within the capacity: that is asked of the caller"
        )]
        let filled = self.data.len() + n;
        // SAFETY: the kernel initialised `n` bytes behind the content, within the capacity.
        unsafe { self.data.set_len(filled) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_consumed_compacted_and_grown() {
        let mut buffer = Buffer::with_capacity(1000);
        assert_eq!(buffer.capacity(), 1024);
        buffer.extend(b"hello world");
        buffer.consume(6);
        assert_eq!(buffer.as_slice(), b"world");
        assert_eq!(buffer.spare(), 1024 - 11);
        buffer.compact();
        assert_eq!(buffer.spare(), 1024 - 5);
        buffer.grow(2000);
        assert_eq!(buffer.as_slice(), b"world");
        assert!(buffer.capacity() >= 2000);
        buffer.consume(100);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_kept_size_comes_back_from_the_pool() {
        let mut buffer = Buffer::with_capacity(4096);
        buffer.extend(b"x");
        let block = buffer.as_slice().as_ptr();
        drop(buffer);
        let mut again = Buffer::with_capacity(4000);
        assert!(again.is_empty());
        again.extend(b"y");
        assert_eq!(again.as_slice().as_ptr(), block);
    }

    #[test]
    fn an_operation_appends() {
        let mut buffer = Buffer::with_capacity(1024);
        buffer.extend(b"ab");
        assert_eq!(buffer.bytes_total(), 1022);
        #[allow(unsafe_code)]
        // SAFETY: both bytes are written before they are declared initialised.
        unsafe {
            buffer.write_ptr().write(b'c');
            buffer.write_ptr().add(1).write(b'd');
            buffer.set_init(2);
        }
        assert_eq!(buffer.as_slice(), b"abcd");
    }
}
