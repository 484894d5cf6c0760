//! The upstream's WebSocket echo: a client's frames come back as a server's (RFC 6455 section 5).
//!
//! A server does not mask, so a frame's header loses its mask key on the way and nothing else
//! changes: frames are rewritten where they landed, header by header, and a payload is passed on as
//! it comes, however long its frame is. A key of zero costs nothing.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use smallvec::SmallVec;

use crate::Wants;

/// Slices that one `writev` takes (`IOV_MAX`).
const SLICES_MAX: usize = 1024;
/// Payload of a control frame (RFC 6455 section 5.5).
const CONTROL_MAX: u64 = 125;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Parts of a buffer, in the order in which they are to be sent.
type Ranges = SmallVec<[Range<usize>; 8]>;

/// A connection after its 101.
#[derive(Default)]
pub struct Echo {
    frames: Frames,
    /// The start of a header whose end has not come: at most 13 bytes.
    partial: Vec<u8>,
    /// What the socket did not take: nothing more is read until it is gone. At most one read.
    pending: Vec<u8>,
    /// 0 <= `sent` <= `pending.len()`.
    sent: usize,
}

impl Echo {
    /// Sends what is due, or else reads once and answers.
    pub fn advance(&mut self, socket: &OwnedFd, scratch: &mut [u8]) -> Wants {
        while let Some(rest) = self.pending.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(socket, rest) {
                Ok(length) => self.sent += length,
                Err(Errno::AGAIN | Errno::INTR) => return Wants::Output,
                Err(_) => return Wants::Close,
            }
        }
        self.pending.clear();
        self.sent = 0;
        if self.frames.are_over() {
            return Wants::Close;
        }
        let held = self.partial.len();
        let Some((start, rest)) = scratch.split_at_mut_checked(held) else { return Wants::Close };
        start.copy_from_slice(&self.partial);
        match rustix::io::read(socket, &mut *rest) {
            Ok(0) => Wants::Close,
            Ok(length) => {
                self.partial.clear();
                self.answer(socket, scratch.get_mut(..held + length).unwrap_or_default())
            }
            Err(Errno::AGAIN | Errno::INTR) => Wants::Input,
            Err(_) => Wants::Close,
        }
    }

    /// Answers the frames in `input`, which starts where the last input ended.
    pub fn answer(&mut self, socket: &OwnedFd, input: &mut [u8]) -> Wants {
        let mut ranges = Ranges::new();
        let Ok(used) = self.frames.turn(input, &mut ranges) else { return Wants::Close };
        self.partial.extend_from_slice(input.get(used..).unwrap_or_default());
        let mut slices: SmallVec<[IoSlice<'_>; 8]> =
            ranges.into_iter().filter_map(|range| input.get(range)).map(IoSlice::new).collect();
        let mut slices = slices.as_mut_slice();
        while !slices.is_empty() {
            let batch = slices.get(..SLICES_MAX).unwrap_or(slices);
            match rustix::io::writev(socket, batch) {
                Ok(length) => IoSlice::advance_slices(&mut slices, length),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    for slice in &*slices {
                        self.pending.extend_from_slice(slice);
                    }
                    return Wants::Output;
                }
                Err(_) => return Wants::Close,
            }
        }
        if self.frames.are_over() { Wants::Close } else { Wants::Input }
    }
}

/// What no client may send: the connection ends.
#[derive(Debug, PartialEq, Eq)]
struct Malformed;

/// Where in the stream of frames the connection is.
#[derive(Default)]
struct Frames {
    /// Payload of the current frame still to come, bytes.
    left: u64,
    /// Its mask key, turned so that its first byte is for the next byte of payload.
    key: [u8; 4],
    /// The current frame is a Pong: it gets no answer.
    unanswered: bool,
    /// The current frame is a Close: the answer to it is the last thing sent.
    closing: bool,
}

impl Frames {
    /// Makes a server's frames out of a client's, in place; `ranges` are what to send of `input`.
    /// Returns how many bytes were used: what is left is the start of a header.
    fn turn(&mut self, input: &mut [u8], ranges: &mut Ranges) -> Result<usize, Malformed> {
        let mut at = 0;
        loop {
            let rest = input.get_mut(at..).unwrap_or_default();
            if self.left > 0 {
                let length = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                if length == 0 {
                    return Ok(at);
                }
                unmask(rest.get_mut(..length).unwrap_or_default(), &mut self.key);
                self.send(at..at + length, ranges);
                self.left -= length as u64;
                at += length;
            } else if self.are_over() {
                // Nothing counts after a Close frame (RFC 6455 section 5.5.1).
                return Ok(input.len());
            } else {
                let Some(header) = Header::parse(rest) else { return Ok(at) };
                let opcode = header.check()?;
                // The key ends the header: without it, the header moves up to the payload.
                rest.copy_within(..header.size - 4, 4);
                if let Some([first, second]) = rest.get_mut(4..6) {
                    *first = FIN & *first | if opcode == PING { PONG } else { opcode };
                    *second &= 0x7f;
                }
                self.unanswered = opcode == PONG;
                self.closing = opcode == CLOSE;
                self.key = header.key;
                self.left = header.length;
                self.send(at + 4..at + header.size, ranges);
                at += header.size;
            }
        }
    }

    /// The Close frame is answered, to its last byte.
    fn are_over(&self) -> bool {
        self.closing && self.left == 0
    }

    fn send(&self, range: Range<usize>, ranges: &mut Ranges) {
        match ranges.last_mut() {
            _ if self.unanswered => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
}

/// The header of a client's frame (RFC 6455 section 5.2).
struct Header {
    /// FIN, the reserved bits, the opcode.
    first: u8,
    masked: bool,
    key: [u8; 4],
    /// Of the payload, bytes.
    length: u64,
    /// Of the header itself with a key, 6 to 14 bytes.
    size: usize,
}

impl Header {
    /// `None`: the end of it has not come.
    fn parse(input: &[u8]) -> Option<Self> {
        let (&[first, second], rest) = input.split_first_chunk()?;
        let (length, extended) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 2),
            127 => (u64::from_be_bytes(*rest.first_chunk()?), 8),
            length => (u64::from(length), 0),
        };
        let key = *rest.get(extended..)?.first_chunk()?;
        Some(Self { first, masked: second & 0x80 != 0, key, length, size: 6 + extended })
    }

    /// Returns the opcode. What it does not look at is the order of fragments.
    fn check(&self) -> Result<u8, Malformed> {
        let opcode = self.first & 0x0f;
        let sound = match opcode {
            0..=2 => self.length >> 63 == 0,
            CLOSE | PING | PONG => self.first & FIN != 0 && self.length <= CONTROL_MAX,
            _ => false,
        };
        if sound && self.masked && self.first & RESERVED == 0 { Ok(opcode) } else { Err(Malformed) }
    }
}

/// XORs the key over a piece of payload (RFC 6455 section 5.3), and turns the key for the next.
fn unmask(payload: &mut [u8], key: &mut [u8; 4]) {
    if *key == [0; 4] {
        return;
    }
    let word = u64::from(u32::from_ne_bytes(*key));
    let word = word << 32 | word;
    let (words, rest) = payload.as_chunks_mut::<8>();
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
    key.rotate_left(payload.len() % 4);
}

/// Any bytes, cut anywhere: a cut changes nothing of what is sent.
#[cfg(test)]
fn fuzz_frames(input: &[u8], cut: usize) {
    let whole = turned(&[input]);
    let (first, second) = input.split_at(cut.min(input.len()));
    let cut = turned(&[first, second]);
    match &whole {
        Ok(_) => assert_eq!(whole, cut),
        Err(Malformed) => assert!(cut.is_err()),
    }
}

/// What is sent for `pieces` received one after the other.
#[cfg(test)]
fn turned(pieces: &[&[u8]]) -> Result<Vec<u8>, Malformed> {
    let mut frames = Frames::default();
    let (mut partial, mut output) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut input = std::mem::take(&mut partial);
        input.extend_from_slice(piece);
        let mut ranges = Ranges::new();
        let used = frames.turn(&mut input, &mut ranges)?;
        for range in ranges {
            output.extend_from_slice(&input[range]);
        }
        partial.extend_from_slice(&input[used..]);
        assert!(partial.len() < 14, "only a header is held");
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    /// A frame as a client sends it, or without a key as a server does.
    fn frame(first: u8, key: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
        let mask = if key.is_some() { 0x80 } else { 0 };
        let mut frame = vec![first];
        match payload.len() {
            length @ ..126 => frame.push(mask | length as u8),
            length @ ..65_536 => {
                frame.push(mask | 0x7e);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(mask | 0x7f);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend(key.iter().flatten());
        let key = key.unwrap_or_default();
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    fn payload(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    const KEY: Option<[u8; 4]> = Some([0x12, 0x34, 0x56, 0x78]);

    #[test]
    fn lengths_of_every_form_come_back_unmasked() {
        for length in [0, 1, 7, 8, 125, 126, 127, 128, 65_535, 65_536, 100_003] {
            for key in [KEY, Some([0; 4])] {
                let sent = frame(0x82, key, &payload(length));
                let expected = frame(0x82, None, &payload(length));
                assert!(turned(&[&sent]) == Ok(expected), "{length} bytes, key {key:?}");
            }
        }
    }

    #[test]
    fn frames_cut_at_every_byte_come_back_whole() {
        let sent = [
            frame(0x01, KEY, b"frag"),
            frame(0x80, KEY, b"ments"),
            frame(0x82, KEY, &payload(300)),
            frame(0x82, Some([0, 0, 0, 1]), &[]),
        ]
        .concat();
        let expected = [
            frame(0x01, None, b"frag"),
            frame(0x80, None, b"ments"),
            frame(0x82, None, &payload(300)),
            frame(0x82, None, &[]),
        ]
        .concat();
        let bytes: Vec<&[u8]> = sent.chunks(1).collect();
        assert_eq!(turned(&bytes).as_ref(), Ok(&expected));
        for cut in 0..sent.len() {
            assert_eq!(turned(&[&sent[..cut], &sent[cut..]]).as_ref(), Ok(&expected), "{cut}");
        }
    }

    #[test]
    fn control_frames_are_answered() {
        let sent = [
            frame(0x89, KEY, b"are you there"),
            frame(0x8a, KEY, b"unasked"),
            frame(0x88, KEY, b"\x03\xe8"),
            frame(0x82, KEY, b"after the end"),
        ]
        .concat();
        let expected =
            [frame(0x8a, None, b"are you there"), frame(0x88, None, b"\x03\xe8")].concat();
        assert_eq!(turned(&[&sent]), Ok(expected));
    }

    #[test]
    fn what_no_client_may_send_is_refused() {
        for (what, sent) in [
            ("unmasked", [frame(0x82, None, b"data"), payload(4)].concat()),
            ("reserved bit", frame(0xc2, KEY, b"data")),
            ("reserved opcode", frame(0x83, KEY, b"data")),
            ("fragmented ping", frame(0x09, KEY, b"data")),
            ("long ping", frame(0x89, KEY, &payload(126))),
            ("length of 64 bits", [[0x82, 0xff].as_slice(), &[0xff; 12]].concat()),
        ] {
            assert_eq!(turned(&[&sent]), Err(Malformed), "{what}");
        }
    }

    #[test]
    fn more_than_the_socket_takes_waits_until_it_does() {
        let (ours, mut client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = OwnedFd::from(ours);
        let sent = frame(0x82, KEY, &payload(3_000_000));
        let expected = frame(0x82, None, &payload(3_000_000));
        let mut sender = client.try_clone().unwrap();
        let sending = std::thread::spawn(move || sender.write_all(&sent).unwrap());
        let (mut echo, mut scratch) = (Echo::default(), vec![0; 65_536]);
        // Nobody reads the answer: sooner or later it has to wait, with one read's worth in hand.
        while echo.advance(&ours, &mut scratch) != Wants::Output {
            std::thread::yield_now();
        }
        assert!((1..=scratch.len()).contains(&echo.pending.len()));
        assert_eq!(echo.advance(&ours, &mut scratch), Wants::Output, "and stays so");
        let length = expected.len();
        let receiving = std::thread::spawn(move || {
            let mut received = vec![0; length];
            client.read_exact(&mut received).unwrap();
            // Open until the test is over.
            (client, received)
        });
        while !receiving.is_finished() {
            assert_ne!(echo.advance(&ours, &mut scratch), Wants::Close);
            std::thread::yield_now();
        }
        sending.join().unwrap();
        assert!(receiving.join().unwrap().1 == expected);
    }

    proptest! {
        #[test]
        fn any_bytes(input in prop::collection::vec(any::<u8>(), 0..64), cut in 0_usize..64) {
            fuzz_frames(&input, cut);
        }

        #[test]
        fn any_frames(
            frames in prop::collection::vec((0_u8..3, any::<[u8; 4]>(), 0_usize..300), 0..5),
            cut in 0_usize..600,
        ) {
            let input: Vec<u8> = frames
                .iter()
                .flat_map(|(opcode, key, length)| frame(*opcode, Some(*key), &payload(*length)))
                .collect();
            let expected: Vec<u8> = frames
                .iter()
                .flat_map(|(opcode, _, length)| frame(*opcode, None, &payload(*length)))
                .collect();
            prop_assert_eq!(turned(&[&input]), Ok(expected));
            fuzz_frames(&input, cut);
        }
    }
}
