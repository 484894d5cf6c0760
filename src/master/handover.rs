//! What two processes say to each other while one takes over from the other (USR2): messages over a
//! pair of sockets, whose end the new process finds by the variable `RINGX_HANDOVER`. Every release
//! has to understand those of others, or to see that it does not.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::http::tunnel::parcel::{self, Parcel};

/// The variable of the environment that holds the descriptor's number.
pub const VARIABLE: &str = "RINGX_HANDOVER";

/// Tunnels of one message. Two descriptors each and one for their bytes: the kernel takes 253.
pub const TUNNELS_MAX: usize = 64;

/// Of messages; raised when one changes its meaning.
const VERSION: u16 = 1;
const MAGIC: [u8; 5] = *b"RINGX";
/// More than any message has.
const BYTES_MAX: usize = 64;
const DESCRIPTORS_MAX: usize = 2 * TUNNELS_MAX + 1;
/// Bytes of the tunnels of one message, at most: what waits in them is bounded.
const TUNNEL_BYTES_MAX: u64 = (TUNNELS_MAX as u64) * (4 << 20);

/// On the wire: [`MAGIC`], the version in network order, a number of the kind, what the kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// New to old: all shards serve, the pid file is about to be written. With the version of the tunnels that it
    /// can take over.
    Ready { tunnels: u16 },
    /// Old to new: tunnels, not to be run yet. Their sockets are with the message, and a file of
    /// memory that has the rest.
    Tunnels,
    /// New to old: they have been understood.
    Taken,
    /// Old to new: all have been sent, and are the new one's.
    Run,
    /// New to old: they run.
    Running,
}

impl Message {
    fn encode(self) -> Vec<u8> {
        let (kind, rest) = match self {
            Message::Ready { tunnels } => (1, Some(tunnels)),
            Message::Tunnels => (2, None),
            Message::Taken => (3, None),
            Message::Run => (4, None),
            Message::Running => (5, None),
        };
        let mut bytes = [&MAGIC[..], &VERSION.to_be_bytes(), &[kind]].concat();
        bytes.extend(rest.into_iter().flat_map(u16::to_be_bytes));
        bytes
    }

    /// `None`: a message of another release, to be passed over.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?.strip_prefix(&VERSION.to_be_bytes())?;
        match *rest {
            [1, high, low] => Some(Message::Ready { tunnels: u16::from_be_bytes([high, low]) }),
            [2] => Some(Message::Tunnels),
            [3] => Some(Message::Taken),
            [4] => Some(Message::Run),
            [5] => Some(Message::Running),
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

    /// The same end, for another thread.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Handover(self.0.try_clone()?))
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

    /// [`Message::Tunnels`]: at most [`TUNNELS_MAX`]. They stay the caller's as well.
    pub fn send_tunnels(&self, parcels: &[Parcel]) -> io::Result<()> {
        let mut file = File::from(memfd_create("ringx tunnels", MemfdFlags::CLOEXEC)?);
        for parcel in parcels {
            let length = u32::try_from(parcel.bytes.len()).map_err(io::Error::other)?;
            file.write_all(&length.to_be_bytes())?;
            file.write_all(&parcel.bytes)?;
        }
        let sockets = parcels.iter().flat_map(|parcel| &parcel.sockets);
        let descriptors: Vec<BorrowedFd<'_>> =
            [file.as_fd()].into_iter().chain(sockets.map(AsFd::as_fd)).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let message = Message::Tunnels.encode();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let slices = [io::IoSlice::new(&message)];
        Ok(rustix::net::sendmsg(&self.0, &slices, &mut control, flags).map(drop)?)
    }

    /// Waits for the next message that this release knows, and its descriptors; `None` when the other
    /// process is gone.
    pub fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut bytes = [0; BYTES_MAX];
        loop {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [io::IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match rustix::net::recvmsg(&self.0, &mut slices, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => continue,
                received => received?,
            };
            if received.bytes == 0 {
                return Ok(None);
            }
            let descriptors = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            let descriptors = descriptors.flatten().collect();
            if let Some(message) = bytes.get(..received.bytes).and_then(Message::decode) {
                return Ok(Some((message, descriptors)));
            }
        }
    }
}

/// What has come with [`Message::Tunnels`].
pub fn unwrap_tunnels(descriptors: Vec<OwnedFd>) -> io::Result<Vec<Parcel>> {
    let mut descriptors = descriptors.into_iter();
    let incomplete = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let mut file = File::from(descriptors.next().ok_or_else(incomplete)?);
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(TUNNEL_BYTES_MAX).read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    let mut parcels = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk() {
        let (content, behind) =
            behind.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(incomplete)?;
        let (Some(client), Some(upstream)) = (descriptors.next(), descriptors.next()) else {
            return Err(incomplete());
        };
        parcels.push(Parcel { sockets: [client, upstream], bytes: content.to_vec() });
        rest = behind;
    }
    if !rest.is_empty() || descriptors.next().is_some() || !parcels.iter().all(parcel::is_whole) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(parcels)
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

    const READY: Message = Message::Ready { tunnels: 258 };

    #[test]
    fn messages_and_those_of_other_releases() {
        assert_eq!(READY.encode(), b"RINGX\x00\x01\x01\x01\x02");
        let (old, new) = Handover::pair().unwrap();
        for unknown in
            [&b"RINGX\x00\x02\x03"[..], b"RINGX\x00\x01\x03\x00", b"RINGX\x00\x01\xff", b"x"]
        {
            assert_eq!(Message::decode(unknown), None);
            rustix::net::send(&new, unknown, SendFlags::empty()).unwrap();
        }
        for message in [READY, Message::Taken, Message::Running] {
            new.send(message).unwrap();
            let (received, descriptors) = old.receive().unwrap().unwrap();
            assert_eq!((received, descriptors.len()), (message, 0));
        }
        drop(new);
        assert!(old.receive().unwrap().is_none());
    }

    #[test]
    fn who_does_not_read_holds_nobody_up() {
        let (_old, new) = Handover::pair().unwrap();
        assert!((0..100_000).any(|_| new.send(READY).is_err()));
    }

    fn socket() -> OwnedFd {
        std::os::unix::net::UnixDatagram::unbound().unwrap().into()
    }

    #[test]
    fn as_many_tunnels_as_may_be() {
        let (old, new) = Handover::pair().unwrap();
        let parcels: Vec<Parcel> = (0..TUNNELS_MAX)
            .map(|_| Parcel { sockets: [socket(), socket()], bytes: parcel::sample() })
            .collect();
        old.send_tunnels(&parcels).unwrap();
        let (message, descriptors) = new.receive().unwrap().unwrap();
        assert_eq!((message, descriptors.len()), (Message::Tunnels, DESCRIPTORS_MAX));
        let arrived = unwrap_tunnels(descriptors).unwrap();
        assert!(arrived.iter().map(|parcel| &parcel.bytes).eq(parcels.iter().map(|p| &p.bytes)));
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let whole = || Parcel { sockets: [socket(), socket()], bytes: parcel::sample() };
        let arrives = |parcels: &[Parcel], spoil: fn(&mut Vec<OwnedFd>)| {
            let (old, new) = Handover::pair().unwrap();
            old.send_tunnels(parcels).unwrap();
            let (_, mut descriptors) = new.receive().unwrap().unwrap();
            spoil(&mut descriptors);
            unwrap_tunnels(descriptors).map(|parcels| parcels.len())
        };
        assert_eq!(arrives(&[whole(), whole()], |_| {}).unwrap(), 2);
        assert_eq!(arrives(&[], |_| {}).unwrap(), 0);
        assert!(arrives(&[whole()], |descriptors| drop(descriptors.pop())).is_err());
        assert!(arrives(&[whole()], |descriptors| descriptors.push(socket())).is_err());
        assert!(arrives(&[whole()], Vec::clear).is_err());
        assert!(arrives(&[Parcel { bytes: vec![1, 2], ..whole() }], |_| {}).is_err());
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
