//! One direction of a WebSocket, followed by its frame headers (RFC 6455 section 5.2).
//!
//! Nothing is kept but a header that came in parts, and the payload of data frames is stepped over,
//! never looked at, so that following costs nanoseconds a frame and nothing a byte. Payload may
//! also pass unseen: see [`Follower::skip`]. RSV1 is let through (RFC 7692 section 6); a length in
//! more bytes than it needs is, too.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Two bytes, eight of length, four of masking key.
pub const HEADER_MAX: usize = 14;
/// The most payload of a control frame (RFC 6455 section 5.5).
const CONTROL_MAX: u8 = 125;

const FIN: u8 = 0x80;
const RSV2_RSV3: u8 = 0x30;
const OPCODE: u8 = 0x0f;
/// The bit of the opcode that control frames have.
const CONTROL: u8 = 0x08;
const MASK: u8 = 0x80;
const LENGTH: u8 = 0x7f;
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

/// FNV-1a, 64 bits.
const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;
const HASH_PRIME: u64 = 0x0100_0000_01b3;

/// Whether frames are masked (RFC 6455 section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Masking {
    /// From a client: every frame must be.
    Masked,
    /// From a server: no frame may be.
    Unmasked,
}

/// What a frame is (RFC 6455 section 11.8), in the order of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// What has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole header; `payload` bytes follow it.
    Frame { opcode: Opcode, fin: bool, payload: u64 },
    /// A whole Close frame, with its code if it has one.
    Closed(Option<u16>),
    /// A whole Ping. The hash of its payload tells which Pong answers it.
    Ping(u64),
    /// A whole Pong, with the hash of its payload.
    Pong(u64),
}

/// What one call has got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of the input.
    pub taken: usize,
    /// Some of them were of a data frame, header or payload; or the direction is lost, and they may
    /// have been.
    pub data: bool,
}

/// Where in its frames a direction is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    /// Payload bytes of the frame that are still to come. More than 0 in [`Place::Data`] and
    /// [`Place::Control`], else 0.
    left: u64,
    /// Of the control frame's payload so far.
    hash: u64,
    /// The control frame's masking key; zeros where frames are not masked.
    key: [u8; 4],
    /// The first two payload bytes of the control frame.
    code: [u8; 2],
    /// Payload bytes of the control frame so far.
    passed: u8,
    /// Bytes of `header` that are there.
    collected: u8,
    /// The start of a header that has not come as a whole.
    header: [u8; HEADER_MAX],
    place: Place,
    message: Message,
    masking: Masking,
}

// Two of them belong to every tunnel that is followed.
const _: () = assert!(size_of::<Follower>() <= 64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    /// Between two frames, or in a header when part of it is collected.
    Header,
    /// In the payload of a data frame.
    Data,
    /// In the payload of a control frame.
    Control(Opcode),
    Lost,
}

/// Which data frame may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Message {
    /// One that starts a message.
    Whole,
    /// One that continues it.
    Fragmented,
}

/// A whole header.
#[derive(Clone, Copy)]
struct Header {
    opcode: Opcode,
    fin: bool,
    /// Bytes of the header itself.
    len: usize,
    payload: u64,
    key: [u8; 4],
}

/// No frame has such a header.
struct NotAHeader;

impl Opcode {
    /// Control frames may come amid the fragments of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }

    fn of(first: u8) -> Option<Self> {
        Some(match first & OPCODE {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            _ => return None,
        })
    }
}

impl Message {
    fn after(fin: bool) -> Self {
        if fin { Message::Whole } else { Message::Fragmented }
    }
}

impl Header {
    /// The header that `bytes` start with; `None` where more of it must come. Whatever is wrong with
    /// it is so as soon as the bytes that make it so are there, however they came.
    #[inline]
    fn parse(bytes: &[u8], masking: Masking, message: Message) -> Result<Option<Self>, NotAHeader> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let opcode = Opcode::of(first).ok_or(NotAHeader)?;
        let fin = first & FIN != 0;
        let in_order = match opcode {
            Opcode::Continuation => message == Message::Fragmented,
            Opcode::Text | Opcode::Binary => message == Message::Whole,
            Opcode::Close | Opcode::Ping | Opcode::Pong => fin,
        };
        if !in_order || first & RSV2_RSV3 != 0 {
            return Err(NotAHeader);
        }

        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let masked = second & MASK != 0;
        let short = second & LENGTH;
        if masked != (masking == Masking::Masked) || (opcode.is_control() && short > CONTROL_MAX) {
            return Err(NotAHeader);
        }

        let rest = bytes.get(2..).unwrap_or_default();
        let (payload, rest, len) = match short {
            LENGTH_16 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest, 4),
                None => return Ok(None),
            },
            LENGTH_64 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest, 10),
                None => return Ok(None),
            },
            _ => (u64::from(short), rest, 2),
        };
        if payload > i64::MAX as u64 {
            return Err(NotAHeader);
        }

        if !masked {
            return Ok(Some(Self { opcode, fin, len, payload, key: [0; 4] }));
        }
        let Some(&key) = rest.first_chunk() else { return Ok(None) };
        #[expect(clippy::arithmetic_side_effects, reason = "at most 10 and 4")]
        let len = len + key.len();
        Ok(Some(Self { opcode, fin, len, payload, key }))
    }
}

impl Follower {
    /// At the first frame after the 101.
    pub fn new(masking: Masking) -> Self {
        Self {
            left: 0,
            hash: HASH_START,
            key: [0; 4],
            code: [0; 2],
            passed: 0,
            collected: 0,
            header: [0; HEADER_MAX],
            place: Place::Header,
            message: Message::Whole,
            masking,
        }
    }

    /// Follows all of `bytes`.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "what is taken is of `bytes`, behind what has been taken"
    )]
    pub fn take(&mut self, bytes: &[u8], on: &mut impl FnMut(Event)) -> Taken {
        let mut all = Taken { taken: 0, data: false };
        loop {
            let mut rest = bytes.get(all.taken..).unwrap_or_default();
            if self.is_at_boundary() {
                let taken = self.take_data_frames(rest, on);
                all.taken += taken;
                all.data |= taken > 0;
                rest = rest.get(taken..).unwrap_or_default();
            }
            if rest.is_empty() {
                return all;
            }
            let frame = self.take_frame(rest, on);
            all.taken += frame.taken;
            all.data |= frame.data;
        }
    }

    /// Follows `bytes` to the end of the frame that is under way or begins; all of them if that is
    /// further on.
    #[inline]
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "the payload is taken of `bytes` behind the header"
    )]
    pub fn take_frame(&mut self, bytes: &[u8], on: &mut impl FnMut(Event)) -> Taken {
        let header = match self.place {
            Place::Header => self.take_header(bytes, on),
            Place::Data | Place::Control(_) | Place::Lost => Taken { taken: 0, data: false },
        };
        let payload = self.take_payload(bytes.get(header.taken..).unwrap_or_default(), on);
        Taken { taken: header.taken + payload.taken, data: header.data || payload.data }
    }

    /// Payload bytes of the frame under way that are still to come: 0 in a header, between frames,
    /// and when lost.
    pub fn payload_left(&self) -> u64 {
        self.left
    }

    /// Payload of a data frame is next: it may pass unseen.
    pub fn in_data_payload(&self) -> bool {
        self.place == Place::Data
    }

    /// `n` payload bytes of a data frame have passed unseen: at most [`Self::payload_left`], and
    /// only [`Self::in_data_payload`].
    pub fn skip(&mut self, n: u64) {
        debug_assert!(n == 0 || (self.in_data_payload() && n <= self.left));
        if self.place == Place::Data {
            self.left = self.left.saturating_sub(n);
            if self.left == 0 {
                self.place = Place::Header;
            }
        }
    }

    /// Between two frames: one more may be put in here.
    pub fn is_at_boundary(&self) -> bool {
        self.place == Place::Header && self.collected == 0
    }

    /// The bytes were not those of a WebSocket, and nothing is followed any more.
    pub fn is_lost(&self) -> bool {
        self.place == Place::Lost
    }

    /// What `bytes` start with, between two frames, without taking it: the length of the header and
    /// that of the payload. `None` where there is no whole header, or a wrong one.
    pub fn peek(&self, bytes: &[u8]) -> Option<(usize, u64)> {
        if !self.is_at_boundary() {
            return None;
        }
        let header = Header::parse(bytes, self.masking, self.message).ok().flatten()?;
        Some((header.len, header.payload))
    }

    /// Between two frames: takes the data frames that are there as a whole, and returns their
    /// length. Small frames come many at a time, and this way each costs little more than the
    /// reading of its header.
    #[inline]
    #[expect(clippy::arithmetic_side_effects, reason = "`rest` is the end of `bytes`")]
    fn take_data_frames(&mut self, bytes: &[u8], on: &mut impl FnMut(Event)) -> usize {
        let (masking, mut message) = (self.masking, self.message);
        let mut rest = bytes;
        while let Ok(Some(header)) = Header::parse(rest, masking, message) {
            let Header { opcode, fin, len, payload, .. } = header;
            let payload_len = usize::try_from(payload).unwrap_or(usize::MAX);
            let Some(next) = rest.get(len.saturating_add(payload_len)..) else { break };
            if opcode.is_control() {
                break;
            }
            on(Event::Frame { opcode, fin, payload });
            message = Message::after(fin);
            rest = next;
        }
        self.message = message;
        bytes.len() - rest.len()
    }

    #[inline]
    fn take_header(&mut self, bytes: &[u8], on: &mut impl FnMut(Event)) -> Taken {
        if self.collected > 0 {
            return self.take_rest_of_header(bytes, on);
        }
        match Header::parse(bytes, self.masking, self.message) {
            Ok(Some(header)) => {
                self.enter(header, on);
                Taken { taken: header.len, data: !header.opcode.is_control() }
            }
            Ok(None) => self.collect(bytes),
            Err(NotAHeader) => self.lose(),
        }
    }

    #[cold]
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "`added` is at most the room behind `before`"
    )]
    fn take_rest_of_header(&mut self, bytes: &[u8], on: &mut impl FnMut(Event)) -> Taken {
        let before = usize::from(self.collected);
        let mut joined = self.header;
        let room = joined.get_mut(before..).unwrap_or_default();
        let added = room.len().min(bytes.len());
        room.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);

        let joined = joined.get(..before + added).unwrap_or_default();
        match Header::parse(joined, self.masking, self.message) {
            Ok(Some(header)) => {
                self.collected = 0;
                self.enter(header, on);
                // What was collected was not yet a whole header, so it is less than this one.
                let taken = header.len.saturating_sub(before);
                Taken { taken, data: !header.opcode.is_control() }
            }
            // Then these are all the bytes: there was room for more.
            Ok(None) => self.collect(bytes),
            Err(NotAHeader) => self.lose(),
        }
    }

    /// Keeps the part of a header that is all there is.
    #[cold]
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "no more is added than there is room behind `collected`"
    )]
    fn collect(&mut self, bytes: &[u8]) -> Taken {
        let room = self.header.get_mut(usize::from(self.collected)..).unwrap_or_default();
        room.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
        self.collected += bytes.len().min(room.len()) as u8;
        let [first, ..] = self.header;
        Taken { taken: bytes.len(), data: !bytes.is_empty() && first & CONTROL == 0 }
    }

    /// The bytes themselves are then taken as payload is.
    #[cold]
    fn lose(&mut self) -> Taken {
        self.place = Place::Lost;
        self.collected = 0;
        Taken { taken: 0, data: false }
    }

    /// A header has passed.
    #[inline]
    fn enter(&mut self, header: Header, on: &mut impl FnMut(Event)) {
        let Header { opcode, fin, payload, key, .. } = header;
        on(Event::Frame { opcode, fin, payload });
        self.left = payload;
        if opcode.is_control() {
            self.hash = HASH_START;
            self.key = key;
            self.passed = 0;
            self.place = Place::Control(opcode);
            if payload == 0 {
                self.end_control(opcode, on);
            }
        } else {
            self.message = Message::after(fin);
            self.place = if payload == 0 { Place::Header } else { Place::Data };
        }
    }

    #[inline]
    fn take_payload(&mut self, bytes: &[u8], on: &mut impl FnMut(Event)) -> Taken {
        let within = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        match self.place {
            Place::Header => Taken { taken: 0, data: false },
            Place::Data => {
                self.skip(within as u64);
                Taken { taken: within, data: within > 0 }
            }
            Place::Control(opcode) => {
                self.take_control(opcode, bytes.get(..within).unwrap_or_default(), on);
                Taken { taken: within, data: false }
            }
            Place::Lost => Taken { taken: bytes.len(), data: !bytes.is_empty() },
        }
    }

    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a remainder; `payload` is at most what is `left`, of 125 bytes"
    )]
    fn take_control(&mut self, opcode: Opcode, payload: &[u8], on: &mut impl FnMut(Event)) {
        for (&masked, at) in payload.iter().zip(usize::from(self.passed)..) {
            let byte = masked ^ self.key[at % self.key.len()];
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(HASH_PRIME);
            if let Some(part) = self.code.get_mut(at) {
                *part = byte;
            }
        }
        self.passed += payload.len() as u8;
        self.left -= payload.len() as u64;
        if self.left == 0 {
            self.end_control(opcode, on);
        }
    }

    /// A control frame has passed.
    fn end_control(&mut self, opcode: Opcode, on: &mut impl FnMut(Event)) {
        self.place = Place::Header;
        match opcode {
            Opcode::Close => {
                let has_code = usize::from(self.passed) >= self.code.len();
                on(Event::Closed(has_code.then(|| u16::from_be_bytes(self.code))));
            }
            Opcode::Ping => on(Event::Ping(self.hash)),
            Opcode::Pong => on(Event::Pong(self.hash)),
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {}
        }
    }
}

/// Close codes that ringx sends (RFC 6455 section 7.4.1).
pub const NORMAL: u16 = 1000;
pub const GOING_AWAY: u16 = 1001;

/// A Close frame with a code (RFC 6455 section 7.4.1) and no reason. One to a server needs a masking
/// key that cannot be foreseen.
pub fn close_frame(code: u16, mask: Option<[u8; 4]>) -> SmallVec<[u8; 8]> {
    let [high, low] = code.to_be_bytes();
    let mut frame = SmallVec::from_slice(&[FIN | 0x8, 2]);
    match mask {
        Some(key) => {
            let [first, second, ..] = key;
            if let Some(length) = frame.last_mut() {
                *length |= MASK;
            }
            frame.extend_from_slice(&key);
            frame.extend_from_slice(&[high ^ first, low ^ second]);
        }
        None => frame.extend_from_slice(&[high, low]),
    }
    frame
}

/// What is seen is the same however the bytes are cut, and whether payload is shown or skipped.
pub fn fuzz_follow(data: &[u8]) {
    for masking in [Masking::Masked, Masking::Unmasked] {
        let whole = follow_in_pieces(masking, data, data.len().max(1), Payload::Shown);
        for piece in [1, 2, 7, data.len().max(1)] {
            assert_eq!(follow_in_pieces(masking, data, piece, Payload::Shown), whole);
            assert_eq!(follow_in_pieces(masking, data, piece, Payload::Skipped), whole);
        }

        for piece in [1, 7, data.len().max(1)] {
            let mut follower = Follower::new(masking);
            let (mut events, mut any_data) = (Vec::new(), false);
            for input in data.chunks(piece) {
                let taken = follower.take(input, &mut |event| events.push(event));
                assert_eq!(taken.taken, input.len());
                any_data |= taken.data;
            }
            assert_eq!((&events, any_data), (&whole.events, whole.data));
            assert_eq!(follower.seen(), whole.last);
        }
    }
}

/// What a direction has shown in all.
#[derive(Debug, PartialEq, Eq)]
struct Followed {
    events: Vec<Event>,
    data: bool,
    /// Where frames end.
    ends: Vec<usize>,
    last: Seen,
}

/// All that can be asked about a place.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    left: u64,
    boundary: bool,
    in_data: bool,
    lost: bool,
}

/// What happens to the payload of data frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Payload {
    Shown,
    Skipped,
}

impl Follower {
    fn seen(&self) -> Seen {
        Seen {
            left: self.payload_left(),
            boundary: self.is_at_boundary(),
            in_data: self.in_data_payload(),
            lost: self.is_lost(),
        }
    }
}

/// Frame by frame, from no more than `piece` bytes at once.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "of a fuzz input: a panic is what is looked for"
)]
fn follow_in_pieces(masking: Masking, data: &[u8], piece: usize, payload: Payload) -> Followed {
    let mut follower = Follower::new(masking);
    let (mut events, mut any_data, mut ends, mut at) = (Vec::new(), false, Vec::new(), 0);
    while at < data.len() {
        let input = data.get(at..data.len().min(at + piece)).unwrap_or_default();
        if payload == Payload::Skipped && follower.in_data_payload() {
            let n = follower.payload_left().min(input.len() as u64);
            follower.skip(n);
            at += n as usize;
        } else {
            let was_lost = follower.is_lost();
            let taken = follower.take_frame(input, &mut |event| events.push(event));
            assert!(taken.taken > 0 && taken.taken <= input.len());
            assert!(taken.taken == input.len() || follower.is_at_boundary());
            assert!(!was_lost || (follower.is_lost() && taken.data));
            any_data |= taken.data;
            at += taken.taken;
        }
        if follower.is_at_boundary() {
            ends.push(at);
        }
        let seen = follower.seen();
        assert!(!seen.in_data || seen.left > 0);
        assert!(!(seen.boundary || seen.lost) || seen.left == 0);
    }
    Followed { events, data: any_data, ends, last: follower.seen() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How the length of a frame is written.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Length {
        Shortest,
        Bits16,
        Bits64,
    }

    #[derive(Clone, Debug)]
    struct Frame {
        opcode: Opcode,
        fin: bool,
        rsv1: bool,
        length: Length,
        key: [u8; 4],
        payload: Vec<u8>,
    }

    impl Frame {
        fn new(opcode: Opcode, payload: &[u8]) -> Self {
            Frame {
                opcode,
                fin: true,
                rsv1: false,
                length: Length::Shortest,
                key: [1, 2, 3, 4],
                payload: payload.to_vec(),
            }
        }

        fn encode(&self, masking: Masking) -> Vec<u8> {
            let opcode = match self.opcode {
                Opcode::Continuation => 0,
                Opcode::Text => 1,
                Opcode::Binary => 2,
                Opcode::Close => 8,
                Opcode::Ping => 9,
                Opcode::Pong => 10,
            };
            let mask = if masking == Masking::Masked { 0x80 } else { 0 };
            let len = self.payload.len();
            let first = opcode | u8::from(self.fin) << 7 | u8::from(self.rsv1) << 6;
            let mut bytes = vec![first];
            if self.length == Length::Shortest && len < 126 {
                bytes.push(mask | len as u8);
            } else if self.length != Length::Bits64 && len < 0x10000 {
                bytes.push(mask | 0x7e);
                bytes.extend_from_slice(&(len as u16).to_be_bytes());
            } else {
                bytes.push(mask | 0x7f);
                bytes.extend_from_slice(&(len as u64).to_be_bytes());
            }
            if masking == Masking::Masked {
                bytes.extend_from_slice(&self.key);
                bytes.extend(self.payload.iter().enumerate().map(|(at, b)| b ^ self.key[at % 4]));
            } else {
                bytes.extend_from_slice(&self.payload);
            }
            bytes
        }

        fn events(&self) -> Vec<Event> {
            let payload = self.payload.len() as u64;
            let mut events = vec![Event::Frame { opcode: self.opcode, fin: self.fin, payload }];
            events.extend(match self.opcode {
                Opcode::Close => Some(Event::Closed(match self.payload[..] {
                    [high, low, ..] => Some(u16::from(high) << 8 | u16::from(low)),
                    _ => None,
                })),
                Opcode::Ping => Some(Event::Ping(hash(&self.payload))),
                Opcode::Pong => Some(Event::Pong(hash(&self.payload))),
                _ => None,
            });
            events
        }
    }

    fn hash(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    fn take(follower: &mut Follower, bytes: &[u8]) -> (Taken, Vec<Event>) {
        let mut events = Vec::new();
        let taken = follower.take(bytes, &mut |event| events.push(event));
        (taken, events)
    }

    /// Whether `bytes`, in one piece, are lost from a WebSocket that is between two messages.
    fn lost(masking: Masking, bytes: &[u8]) -> bool {
        fuzz_follow(bytes);
        let mut follower = Follower::new(masking);
        take(&mut follower, bytes);
        follower.is_lost()
    }

    #[test]
    fn frames_of_the_rfc() {
        // RFC 6455 section 5.7.
        let mut server = Follower::new(Masking::Unmasked);
        let hello = [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
        let text = |fin, payload| Event::Frame { opcode: Opcode::Text, fin, payload };
        assert_eq!(take(&mut server, &hello).1, [text(true, 5)]);
        let fragments = [0x01, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f];
        let last = Event::Frame { opcode: Opcode::Continuation, fin: true, payload: 2 };
        assert_eq!(take(&mut server, &fragments).1, [text(false, 3), last]);
        let ping = [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
        let (taken, sent) = take(&mut server, &ping);
        assert_eq!(taken, Taken { taken: 7, data: false });

        let mut client = Follower::new(Masking::Masked);
        let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let (_, answer) = take(&mut client, &pong);
        let [_, Event::Ping(sent)] = sent[..] else { panic!("{sent:?}") };
        assert_eq!(answer.last(), Some(&Event::Pong(sent)));
        assert_eq!(sent, hash(b"Hello"));
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);

        let binary = |payload| Event::Frame { opcode: Opcode::Binary, fin: true, payload };
        assert_eq!(take(&mut server, &[0x82, 0x7e, 1, 0]).1, [binary(256)]);
        server.skip(256);
        assert_eq!(take(&mut server, &[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]).1, [binary(65536)]);
        assert_eq!(server.payload_left(), 65536);
    }

    #[test]
    fn what_is_not_a_websocket() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\n"[..],
            &[0x83],
            &[0x87],
            &[0x8b],
            &[0x8f],
            // RSV2, RSV3.
            &[0xa2],
            &[0x91],
            // A fragmented control frame, a long one.
            &[0x09],
            &[0x08],
            &[0x89, 126],
            &[0x8a, 127],
            &[0x80],
            // Fragments out of order.
            &[0x00],
            &[0x01, 0, 0x81],
            &[0x01, 0, 0x80, 0, 0x80],
            // Masked.
            &[0x81, 0x80],
            &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(lost(Masking::Unmasked, bytes), "{bytes:x?}");
            assert!(!lost(Masking::Unmasked, &bytes[..bytes.len() - 1]) || bytes.len() > 10);
        }
        assert!(lost(Masking::Masked, &[0x81, 0x05]));
        // Allowed: RSV1, lengths longer than needed, control frames amid fragments.
        assert!(!lost(Masking::Unmasked, &[0xc1, 126, 0, 0, 0xc1, 127, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert!(!lost(Masking::Unmasked, &[0x01, 0, 0x89, 0, 0x00, 0, 0x88, 0, 0x80, 0, 0x82]));
        let longest = [0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert!(!lost(Masking::Unmasked, &longest));
        let mut follower = Follower::new(Masking::Unmasked);
        take(&mut follower, &longest);
        assert_eq!(follower.payload_left(), i64::MAX as u64);
    }

    #[test]
    fn when_lost_everything_is_taken_as_data() {
        let mut follower = Follower::new(Masking::Unmasked);
        let (taken, events) = take(&mut follower, &[0x89, 0, 0x83, 0, 0x89, 0]);
        assert_eq!(taken, Taken { taken: 6, data: true });
        assert_eq!(events.len(), 2);
        assert!(follower.is_lost() && !follower.is_at_boundary());
        assert_eq!(take(&mut follower, &[0x89, 0]), (Taken { taken: 2, data: true }, vec![]));
        assert_eq!(follower.take_frame(&[0x89, 0], &mut |_| ()), Taken { taken: 2, data: true });
        assert_eq!(follower.peek(&[0x89, 0]), None);
    }

    #[test]
    fn peeking_takes_nothing() {
        let mut follower = Follower::new(Masking::Masked);
        let frame = Frame::new(Opcode::Binary, &[0; 300]).encode(Masking::Masked);
        for len in 0..8 {
            assert_eq!(follower.peek(&frame[..len]), None);
        }
        assert_eq!(follower.peek(&frame[..8]), Some((8, 300)));
        assert_eq!(follower.peek(&frame), Some((8, 300)));
        assert_eq!(follower.peek(b"no"), None);
        assert!(follower.is_at_boundary());
        take(&mut follower, &frame[..1]);
        assert_eq!(follower.peek(&frame), None);
    }

    #[test]
    fn close_frames_are_read_back() {
        for (masking, key, len) in
            [(Masking::Unmasked, None, 4), (Masking::Masked, Some([9, 0x8f, 7, 6]), 8)]
        {
            let frame = close_frame(1001, key);
            assert!(frame.len() == len && !frame.spilled());
            let mut follower = Follower::new(masking);
            let (_, events) = take(&mut follower, &frame);
            assert_eq!(events.last(), Some(&Event::Closed(Some(1001))));
            assert!(follower.is_at_boundary());
        }
    }

    fn payload(max: usize) -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 0..=max)]
    }

    fn frame(opcode: Opcode) -> impl Strategy<Value = Frame> {
        let (length, payload) = if opcode.is_control() {
            (Just(Length::Shortest).boxed(), payload(125).boxed())
        } else {
            let lengths = vec![Length::Shortest, Length::Bits16, Length::Bits64];
            let long = (0..70_000_usize).prop_map(|len| vec![0x89; len]);
            let payload = prop_oneof![9 => payload(300), 1 => long];
            (prop::sample::select(lengths).boxed(), payload.boxed())
        };
        (any::<bool>(), length, any::<[u8; 4]>(), payload).prop_map(
            move |(rsv1, length, key, payload)| Frame {
                opcode,
                fin: true,
                rsv1,
                length,
                key,
                payload,
            },
        )
    }

    /// A control frame, or a message of some fragments, each with a control frame after it or not.
    fn message() -> impl Strategy<Value = Vec<Frame>> {
        let control = || {
            prop::sample::select(&[Opcode::Close, Opcode::Ping, Opcode::Pong][..])
                .prop_flat_map(frame)
        };
        let start = prop::sample::select(&[Opcode::Text, Opcode::Binary][..]).prop_flat_map(frame);
        let more = (prop::option::of(control()), frame(Opcode::Continuation));
        let data = (start, prop::collection::vec(more, 0..4)).prop_map(|(mut start, more)| {
            start.fin = more.is_empty();
            let count = more.len();
            let mut frames = vec![start];
            for (at, (control, mut fragment)) in more.into_iter().enumerate() {
                frames.extend(control);
                fragment.fin = at + 1 == count;
                frames.push(fragment);
            }
            frames
        });
        prop_oneof![control().prop_map(|frame| vec![frame]), data]
    }

    fn masking() -> impl Strategy<Value = Masking> {
        prop::sample::select(&[Masking::Masked, Masking::Unmasked][..])
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_follow(&data);
        }

        #[test]
        fn likely_bytes(data in prop::collection::vec(prop_oneof![
            prop::sample::select(&[0x00, 0x01, 0x81, 0x82, 0x80, 0x88, 0x89, 0x8a, 0x02][..]),
            prop::sample::select(&[0, 1, 2, 0x80, 0x81, 0x82, 126, 127, 254, 255][..]),
        ], 0..40)) {
            fuzz_follow(&data);
        }

        /// Bytes and whether each is of a data frame come from the generated frames.
        #[test]
        fn frames_are_followed(
            messages in prop::collection::vec(message(), 0..6),
            masking in masking(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            bad: bool,
        ) {
            let frames = messages.concat();
            let (mut bytes, mut is_data) = (Vec::new(), Vec::new());
            let (mut ends, mut expected) = (Vec::new(), Vec::new());
            for frame in &frames {
                bytes.extend_from_slice(&frame.encode(masking));
                is_data.resize(bytes.len(), !frame.opcode.is_control());
                ends.push(bytes.len());
                expected.extend_from_slice(&frame.events());
            }
            if bad {
                bytes.extend_from_slice(&[0x83, 0x89, 0]);
                is_data.resize(bytes.len(), true);
            }

            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut follower = Follower::new(masking);
            let mut events = Vec::new();
            for cut in cuts.windows(2) {
                let range = cut[0]..cut[1];
                let (taken, some) = take(&mut follower, &bytes[range.clone()]);
                events.extend(some);
                let data = is_data[range.clone()].contains(&true);
                prop_assert_eq!(taken, Taken { taken: range.len(), data });
                let at = range.end;
                let boundary = at == 0 || ends.contains(&at);
                prop_assert_eq!(follower.is_at_boundary(), boundary);
                prop_assert_eq!(follower.is_lost(), bad && at > ends.last().copied().unwrap_or(0));
            }
            prop_assert_eq!(&events, &expected);

            if bytes.len() < 5000 {
                fuzz_follow(&bytes);
            }
            for payload in [Payload::Shown, Payload::Skipped] {
                let followed = follow_in_pieces(masking, &bytes, bytes.len().max(1), payload);
                prop_assert_eq!(&followed.ends, &ends);
                prop_assert_eq!(&followed.events, &expected);
            }
        }
    }
}
