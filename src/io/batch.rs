//! Sends of many sockets in one system call.
//!
//! A send is dear, and dearer where other work comes between it and the next: the kernel is entered
//! and left for each, its code and data have to be fetched anew, and the receiver's thread, which has
//! gone to sleep meanwhile, has to be woken again. Sends that can wait for each other, which are those
//! of one turn of a shard, are therefore written down and made together, on a ring of their own. None
//! of them ever waits in the kernel: a socket that takes nothing says so at once, and nothing is under
//! way any more when the call returns. (Receives have been tried in the same way, and gain nothing.)

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use rustix::net::SendFlags;

/// What is made in one call.
pub const ENTRIES_MAX: usize = 64;
/// Bytes that are sent in one call.
pub const SENT_MAX: usize = 64 << 10;

/// A ring on which nothing waits.
struct Together(IoUring);

impl Together {
    fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_defer_taskrun().setup_single_issuer();
        Ok(Together(builder.build(ENTRIES_MAX as u32)?))
    }

    /// Makes these operations, whose user data are their places among the results. When that fails
    /// the results of those that were not made are left as they are, and the ring must not be used
    /// again.
    ///
    /// What the operations point to must be there until the call returns, and they must not wait
    /// (`MSG_DONTWAIT`).
    fn make(
        &mut self,
        operations: impl Iterator<Item = squeue::Entry>,
        results: &mut [i32],
    ) -> io::Result<()> {
        let mut left = 0_usize;
        let mut queue = self.0.submission();
        for operation in operations {
            #[allow(unsafe_code)]
            // SAFETY: it is over when this call returns, see above; when that fails, the ring is
            // closed, and with it what has not begun.
            unsafe {
                queue.push(&operation).map_err(|_| io::ErrorKind::OutOfMemory)?;
            }
            left = left.saturating_add(1);
        }
        drop(queue);
        while left > 0 {
            match self.0.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            for completion in self.0.completion() {
                if let Some(result) = results.get_mut(completion.user_data() as usize) {
                    *result = completion.result();
                }
                left = left.saturating_sub(1);
            }
        }
        Ok(())
    }
}

/// No result of an operation: the kernel tells a length or the negative of an errno, which are small.
const NOT_MADE: i32 = i32::MIN;

/// A result of the kernel's; `None`: there is none.
fn result(result: i32) -> Option<io::Result<usize>> {
    match usize::try_from(result) {
        Ok(length) => Some(Ok(length)),
        Err(_) if result == NOT_MADE => None,
        Err(_) => Some(Err(io::Error::from_raw_os_error(result.saturating_neg()))),
    }
}

#[allow(unsafe_code)]
fn borrowed<'a>(socket: RawFd) -> BorrowedFd<'a> {
    // SAFETY: whoever has named the socket keeps it open until the operation has been made.
    unsafe { BorrowedFd::borrow_raw(socket) }
}

/// Sends that are made together.
pub struct Sends {
    /// Where there is none, they are made one after the other.
    together: Option<Together>,
    letters: Vec<Letter>,
    /// What they are to carry, one behind the other; of a fixed capacity.
    bytes: Vec<u8>,
    results: Vec<i32>,
}

#[derive(Debug, Clone, Copy)]
struct Letter {
    /// Negative: it has been taken back.
    to: RawFd,
    start: usize,
    len: usize,
}

impl Letter {
    fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.start.saturating_add(self.len)).unwrap_or_default()
    }
}

impl Sends {
    /// The error says why they cannot be made together.
    pub fn new() -> io::Result<Self> {
        Ok(Sends {
            together: Some(Together::new()?),
            letters: Vec::with_capacity(ENTRIES_MAX),
            bytes: Vec::with_capacity(SENT_MAX),
            results: Vec::with_capacity(ENTRIES_MAX),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    /// Whether there is no room for one more, whatever its length.
    pub fn is_full(&self) -> bool {
        self.letters.len() == ENTRIES_MAX || self.bytes.len() == SENT_MAX
    }

    /// Whether one more of so many bytes can be written down.
    pub fn has_room(&self, len: usize) -> bool {
        self.letters.len() < ENTRIES_MAX && len <= SENT_MAX.saturating_sub(self.bytes.len())
    }

    /// Writes down a send, for which there must be room. The socket has to stay open until the sends
    /// are made or this one is [taken back](Sends::take_back). Gives its place among them.
    pub fn add<'a>(
        &mut self,
        to: BorrowedFd<'_>,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> usize {
        let (place, start) = (self.letters.len(), self.bytes.len());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        let len = self.bytes.len().saturating_sub(start);
        debug_assert!(self.bytes.len() <= SENT_MAX && place < ENTRIES_MAX);
        self.letters.push(Letter { to: to.as_raw_fd(), start, len });
        place
    }

    /// This send is not to be made.
    pub fn take_back(&mut self, place: usize) {
        if let Some(letter) = self.letters.get_mut(place) {
            letter.to = -1;
        }
    }

    /// Makes the sends, in their order, and forgets them. `told` hears of each that was not taken
    /// back: its place, the bytes that were to be sent, and how many of them the socket took
    /// (`WouldBlock` when that is none).
    pub fn make(&mut self, mut told: impl FnMut(usize, &[u8], io::Result<usize>)) {
        let Sends { together, letters, bytes, results } = self;
        let wanted = || letters.iter().enumerate().filter(|(_, letter)| letter.to >= 0);
        results.clear();
        results.resize(letters.len(), NOT_MADE);
        // One alone is cheaper by itself.
        if letters.len() > 1 {
            let operations = wanted().map(|(place, letter)| {
                let bytes = letter.of(bytes);
                opcode::Send::new(types::Fd(letter.to), bytes.as_ptr(), bytes.len() as u32)
                    .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                    .build()
                    .user_data(place as u64)
            });
            make(together, operations, results);
        }
        for (place, letter) in wanted() {
            let bytes = letter.of(bytes);
            let made = results.get(place).and_then(|&code| result(code));
            told(place, bytes, made.unwrap_or_else(|| send(letter.to, bytes)));
        }
        letters.clear();
        bytes.clear();
    }
}

fn send(to: RawFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::net::send(borrowed(to), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// Makes the operations on the ring, if there is one, and as long as it works.
fn make(
    together: &mut Option<Together>,
    operations: impl Iterator<Item = squeue::Entry>,
    results: &mut [i32],
) {
    if let Some(ring) = together
        && ring.make(operations, results).is_err()
    {
        *together = None;
    }
}
