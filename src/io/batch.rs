//! Sends of many sockets, made together.
//!
//! A send is dear, and dearer where other work comes between it and the next: the kernel is entered
//! and left for each, its code and data have to be fetched anew, and the receiver's thread, which has
//! gone to sleep meanwhile, has to be woken again. Sends that can wait for each other, which are those
//! of one turn of a shard, are therefore written down and made together: those of tasks, which are one
//! task's work away from each other, in one call on a ring of their own, those of tunnels right behind
//! one another. None of them ever waits in the kernel: a socket that takes nothing says so at once, and
//! nothing is under way any more when the call returns. (Receives have been tried in the same way, and
//! gain nothing.)

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::runtime::builder;

/// Sends made in one call.
pub const LETTERS_MAX: usize = 64;
/// Bytes of them.
pub const BYTES_MAX: usize = 64 << 10;
/// A longer send is made by itself: it is dear enough for its system call not to matter, and its
/// bytes are not to be moved.
pub const LETTER_MAX: usize = 8 << 10;

/// A ring on which nothing waits.
struct Together(IoUring);

impl Together {
    fn new() -> io::Result<Self> {
        Ok(Together(builder().build(LETTERS_MAX as u32)?))
    }

    /// Makes these sends. When that fails the results of those that were not made are left as they
    /// are, and the ring must not be used again.
    fn send<'a>(
        &mut self,
        letters: impl Iterator<Item = (usize, &'a Letter)>,
        bytes: &[u8],
        results: &mut [i32],
    ) -> io::Result<()> {
        let mut left = 0_usize;
        let mut queue = self.0.submission();
        for (place, letter) in letters {
            let part = letter.of(bytes);
            let send = opcode::Send::new(types::Fd(letter.to), part.as_ptr(), part.len() as u32)
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .build()
                .user_data(place as u64);
            #[allow(unsafe_code)]
            // SAFETY: `bytes` is there until this call returns, and with `MSG_DONTWAIT` the send is
            // over then; when the call fails, the ring is closed, and with it what has not begun.
            unsafe {
                queue.push(&send).map_err(|_| io::ErrorKind::OutOfMemory)?;
            }
            left = left.saturating_add(1);
        }
        drop(queue);
        while left > 0 {
            match self.0.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.take_results(results);
                    return Err(e);
                }
            }
            left = left.saturating_sub(self.take_results(results));
        }
        Ok(())
    }

    /// How many there were.
    fn take_results(&mut self, results: &mut [i32]) -> usize {
        let mut taken = 0_usize;
        for completion in self.0.completion() {
            if let Some(result) = results.get_mut(completion.user_data() as usize) {
                *result = completion.result();
            }
            taken = taken.saturating_add(1);
        }
        taken
    }
}

/// No result of a send: the kernel tells a length or the negative of an errno, which are small.
const NOT_MADE: i32 = i32::MIN;

/// A result of the kernel's; `None`: there is none.
fn result(result: i32) -> Option<Result<usize, Errno>> {
    match usize::try_from(result) {
        Ok(length) => Some(Ok(length)),
        Err(_) if result == NOT_MADE => None,
        Err(_) => Some(Err(Errno::from_raw_os_error(result.saturating_neg()))),
    }
}

/// Sends that are made together.
pub struct Sends {
    /// Where there is none, they are made one after the other.
    together: Option<Together>,
    /// Why there is none any more.
    lost: Option<io::Error>,
    letters: Vec<Letter>,
    /// What they are to carry, one behind the other; of a fixed capacity.
    bytes: Vec<u8>,
    results: Vec<i32>,
}

#[derive(Debug)]
struct Letter {
    /// Negative: it has been taken back.
    to: RawFd,
    start: usize,
    len: usize,
}

impl Letter {
    fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.start..self.start.saturating_add(self.len)).unwrap_or_default()
    }

    #[allow(unsafe_code)]
    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: whoever has added the letter keeps its socket open until it is sent.
        unsafe { BorrowedFd::borrow_raw(self.to) }
    }
}

impl Sends {
    /// Sends made in one call. The error says why they cannot be.
    pub fn new() -> io::Result<Self> {
        Ok(Sends { together: Some(Together::new()?), ..Sends::one_by_one() })
    }

    /// Sends made right behind one another. For tunnels, whose turns are short, that was measured to cost
    /// as much as one call for all, and less where they are few.
    pub fn one_by_one() -> Self {
        Sends {
            together: None,
            lost: None,
            letters: Vec::with_capacity(LETTERS_MAX),
            bytes: Vec::with_capacity(BYTES_MAX),
            results: Vec::with_capacity(LETTERS_MAX),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    /// Whether there is no room for one more, whatever its length.
    pub fn is_full(&self) -> bool {
        self.letters.len() == LETTERS_MAX || self.bytes.len() == BYTES_MAX
    }

    /// Whether one more of so many bytes can be written down.
    pub fn has_room(&self, len: usize) -> bool {
        self.letters.len() < LETTERS_MAX && len <= BYTES_MAX.saturating_sub(self.bytes.len())
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
        debug_assert!(self.bytes.len() <= BYTES_MAX && place < LETTERS_MAX);
        self.letters.push(Letter { to: to.as_raw_fd(), start, len });
        place
    }

    /// This send is not to be made.
    pub fn take_back(&mut self, place: usize) {
        if let Some(letter) = self.letters.get_mut(place) {
            letter.to = -1;
        }
    }

    /// Why sends are made one after the other from now on, told once.
    pub fn take_loss(&mut self) -> Option<io::Error> {
        self.lost.take()
    }

    /// Makes the sends, in their order, and forgets them. `told` hears of each that was not taken
    /// back: its place, the bytes that were to be sent, and how many of them the socket took
    /// (`AGAIN` when that is none).
    pub fn make(&mut self, mut told: impl FnMut(usize, &[u8], Result<usize, Errno>)) {
        // Whatever becomes of `told`, they are not made again.
        let mut letters = std::mem::take(&mut self.letters);
        let mut bytes = std::mem::take(&mut self.bytes);
        let Sends { together, lost, results, .. } = self;
        let wanted = || letters.iter().enumerate().filter(|(_, letter)| letter.to >= 0);
        results.clear();
        results.resize(letters.len(), NOT_MADE);
        // One alone is cheaper by itself.
        if letters.len() > 1
            && let Some(ring) = together
            && let Err(e) = ring.send(wanted(), &bytes, results)
        {
            (*together, *lost) = (None, Some(e));
        }
        for (place, letter) in wanted() {
            let bytes = letter.of(&bytes);
            let made = results.get(place).and_then(|&code| result(code));
            told(place, bytes, made.unwrap_or_else(|| send(letter.socket(), bytes)));
        }
        letters.clear();
        bytes.clear();
        (self.letters, self.bytes) = (letters, bytes);
    }
}

/// Sends at once what the socket takes; `AGAIN` when that is nothing.
pub fn send(to: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match rustix::net::send(to, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return sent,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Non-blocking.
    pub fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    /// With the ring, where this machine has one, and without.
    fn both_ways() -> Vec<Sends> {
        Sends::new().into_iter().chain([Sends::one_by_one()]).collect()
    }

    fn made(sends: &mut Sends) -> Vec<(usize, Vec<u8>, Result<usize, Errno>)> {
        let mut told = Vec::new();
        sends.make(|place, bytes, sent| told.push((place, bytes.to_vec(), sent)));
        assert!(sends.is_empty());
        told
    }

    #[test]
    fn each_socket_gets_its_own_and_in_order() {
        for mut sends in both_ways() {
            let pairs: Vec<_> = (0..5).map(|_| pair()).collect();
            for half in [&b"on"[..], b"e"] {
                for (n, (ours, _)) in (0..).zip(&pairs) {
                    sends.add(ours.as_fd(), [half, &[n]]);
                }
            }
            assert_eq!(made(&mut sends).len(), 10);
            for (n, (_, theirs)) in (0..).zip(&pairs) {
                let mut got = [0; 16];
                let count = (&*theirs).read(&mut got).unwrap();
                assert_eq!(&got[..count], [b'o', b'n', n, b'e', n]);
            }
        }
    }

    #[test]
    fn a_full_socket_and_a_closed_one_say_so_and_others_do_not_notice() {
        for mut sends in both_ways() {
            let ((full, _reader), (broken, gone), (good, mut reads)) = (pair(), pair(), pair());
            let chunk = vec![0; 64 << 10];
            while rustix::net::send(&full, &chunk, SendFlags::DONTWAIT).is_ok() {}
            drop(gone);
            for socket in [&full, &broken, &good] {
                sends.add(socket.as_fd(), [&b"hello"[..]]);
            }
            let told = made(&mut sends);
            let [(0, bytes, full), (1, _, broken), (2, _, good)] = &told[..] else {
                panic!("{told:?}")
            };
            assert_eq!(bytes, b"hello");
            assert_eq!((full, broken), (&Err(Errno::AGAIN), &Err(Errno::PIPE)));
            assert_eq!(*good, Ok(5));
            let mut got = [0; 8];
            assert_eq!(reads.read(&mut got).unwrap(), 5);
        }
    }

    #[test]
    fn a_ring_that_fails_is_told_once_and_everything_is_sent() {
        let Ok(mut sends) = Sends::new() else { return };
        let (ours, mut theirs) = pair();
        let ring = sends.together.as_ref().unwrap().0.as_raw_fd();
        let null = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: the ring's number is its own as long as `sends` has it; what it names now is no ring.
        #[allow(unsafe_code)]
        let replaced = unsafe { libc::dup2(null.as_raw_fd(), ring) };
        assert_eq!(replaced, ring);
        for part in [&b"he"[..], b"llo"] {
            sends.add(ours.as_fd(), [part]);
        }
        assert!(made(&mut sends).iter().all(|(_, bytes, sent)| *sent == Ok(bytes.len())));
        assert!(sends.take_loss().is_some() && sends.take_loss().is_none());
        let mut got = [0; 8];
        assert_eq!(theirs.read(&mut got).unwrap(), 5);
    }

    #[test]
    fn what_is_taken_back_is_not_sent() {
        for mut sends in both_ways() {
            let ((one, one_reads), (other, other_reads)) = (pair(), pair());
            sends.add(one.as_fd(), [&b"a"[..]]);
            let place = sends.add(other.as_fd(), [&b"b"[..]]);
            sends.add(one.as_fd(), [&b"c"[..]]);
            sends.take_back(place);
            let places: Vec<_> = made(&mut sends).iter().map(|(place, ..)| *place).collect();
            assert_eq!(places, [0, 2]);
            let mut got = [0; 8];
            assert_eq!((&one_reads).read(&mut got).unwrap(), 2);
            let nothing = (&other_reads).read(&mut got).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn it_takes_so_many_and_so_much() {
        for mut sends in both_ways() {
            let (ours, _theirs) = pair();
            for _ in 0..LETTERS_MAX {
                assert!(!sends.is_full() && sends.has_room(1));
                sends.add(ours.as_fd(), [&b"x"[..]]);
            }
            assert!(sends.is_full() && !sends.has_room(0));
            assert_eq!(made(&mut sends).len(), LETTERS_MAX);
            sends.add(ours.as_fd(), [&vec![0; BYTES_MAX - 1][..]]);
            assert!(!sends.is_full() && sends.has_room(1) && !sends.has_room(2));
            sends.add(ours.as_fd(), [&b"x"[..]]);
            assert!(sends.is_full());
        }
    }
}
