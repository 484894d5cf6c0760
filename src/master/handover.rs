//! What two processes say to each other while one takes over from the other (USR2): messages over a
//! pair of sockets, whose end the new process finds by the variable `RINGX_HANDOVER`. Every release
//! has to understand those of others, or to see that it does not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::channel::{Event, Events};
use crate::os;

/// The variable of the environment that holds the descriptor's number.
pub const VARIABLE: &str = "RINGX_HANDOVER";

/// Of messages; raised when one changes its meaning.
const VERSION: u16 = 1;
const MAGIC: [u8; 5] = *b"RINGX";
/// More than any message has.
const BYTES_MAX: usize = 64;

/// On the wire: [`MAGIC`], the version in network order, a number of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// New to old: all shards serve, the pid file is written.
    Ready,
}

impl Message {
    fn kind(self) -> u8 {
        match self {
            Message::Ready => 1,
        }
    }

    fn encode(self) -> Vec<u8> {
        [&MAGIC[..], &VERSION.to_be_bytes(), &[self.kind()]].concat()
    }

    /// `None`: a message of another release, to be passed over.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?.strip_prefix(&VERSION.to_be_bytes())?;
        match rest {
            [1] => Some(Message::Ready),
            _ => None,
        }
    }
}

/// One end of the line between an old and a new process.
#[derive(Debug)]
pub struct Handover(OwnedFd);

impl Handover {
    /// Both ends; a message stays one.
    pub fn pair() -> io::Result<(Self, Self)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Handover(ours), Handover(theirs)))
    }

    /// The end that a process was started with.
    pub fn inherited(socket: OwnedFd) -> Self {
        Handover(socket)
    }

    /// The number that the other process finds it by.
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Never waits: who does not read is not told.
    pub fn send(&self, message: Message) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::send(&self.0, &message.encode(), flags).map(drop)?)
    }

    /// Waits for the next message that this release knows; `None` when the other process is gone.
    fn receive(&self) -> io::Result<Option<Message>> {
        let mut bytes = [0; BYTES_MAX];
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut bytes[..], RecvFlags::empty())?;
            if length == 0 {
                return Ok(None);
            }
            if let Some(message) = bytes.get(..length).and_then(Message::decode) {
                return Ok(Some(message));
            }
        }
    }

    /// Starts the thread that makes events of what the other process says, until it is gone.
    pub fn forward(&self, events: Events) -> io::Result<()> {
        let line = Handover(self.0.try_clone()?);
        let listen = move || {
            // It makes events and nothing else: no right that the master has is of use to it.
            let _ = os::clear_capabilities();
            while let Ok(Some(message)) = line.receive() {
                events.send(match message {
                    Message::Ready => Event::SuccessorReady,
                });
            }
        };
        thread::Builder::new().name("ringx handover".to_owned()).spawn(listen).map(drop)
    }
}

impl AsFd for Handover {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Any packet is a message that is written the same, or passed over.
pub fn fuzz_handover(data: &[u8]) {
    if let Some(message) = Message::decode(data) {
        assert_eq!(message.encode(), data);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_and_those_of_other_releases() {
        assert_eq!(Message::Ready.encode(), b"RINGX\x00\x01\x01");
        let (old, new) = Handover::pair().unwrap();
        for unknown in
            [&b"RINGX\x00\x02\x01"[..], b"RINGX\x00\x01\x01\x00", b"RINGX\x00\x01\xff", b"x"]
        {
            assert_eq!(Message::decode(unknown), None);
            rustix::net::send(&new, unknown, SendFlags::empty()).unwrap();
        }
        new.send(Message::Ready).unwrap();
        assert_eq!(old.receive().unwrap(), Some(Message::Ready));
        drop(new);
        assert_eq!(old.receive().unwrap(), None);
    }

    #[test]
    fn who_does_not_read_holds_nobody_up() {
        let (_old, new) = Handover::pair().unwrap();
        assert!((0..100_000).any(|_| new.send(Message::Ready).is_err()));
    }

    proptest! {
        #[test]
        fn any_packet(data in proptest::collection::vec(any::<u8>(), 0..12)) {
            fuzz_handover(&data);
        }

        #[test]
        fn any_kind(kind: u8) {
            fuzz_handover(&[b"RINGX\x00\x01", &[kind][..]].concat());
        }
    }
}
