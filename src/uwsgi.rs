//! The uwsgi packet as values: encoding for the upstream side, a strict decoder for tests and for
//! the server of `--demo`.
//!
//! | bytes  | field                                                                         |
//! |--------|-------------------------------------------------------------------------------|
//! | 1      | modifier1 (0: WSGI)                                                           |
//! | 2      | length of the block, little-endian                                            |
//! | 1      | modifier2                                                                     |
//! | length | the block: key length (u16, little-endian), key, value length, value, again … |
//! | rest   | the request body, `CONTENT_LENGTH` bytes                                      |
//!
//! Source: <https://uwsgi-docs.readthedocs.io/en/latest/Protocol.html>.

mod names;
mod size;

use thiserror::Error;

pub use self::names::{
    HEADER_PREFIX_LENGTH, NameSet, Occurrence, Repeated, put_header_key, same_variable,
};
pub use self::size::{BlockSize, fuzz_block_size};

/// Bytes before the block.
pub const HEADER_LENGTH: usize = 4;

/// The most that a block, a key or a value can have: all three lengths are 16 bits on the wire.
pub const LENGTH_MAX: usize = u16::MAX as usize;

/// What does not fit in 16 bits of length, with the number of bytes it has.
///
/// All three read the same in the log, because to the operator it is one matter: the request has
/// more in it than a uwsgi packet can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TooBig {
    #[error("uwsgi request is too big: {0}")]
    Block(usize),
    #[error("uwsgi request is too big: {0}")]
    Key(usize),
    #[error("uwsgi request is too big: {0}")]
    Value(usize),
}

/// The four bytes before a block of `block_len` bytes.
pub fn header(modifier1: u8, block_len: u16, modifier2: u8) -> [u8; HEADER_LENGTH] {
    let [low, high] = block_len.to_le_bytes();
    [modifier1, low, high, modifier2]
}

/// The length of a finished block as the header wants it.
pub fn block_length(length: usize) -> Result<u16, TooBig> {
    u16::try_from(length).map_err(|_| TooBig::Block(length))
}

/// Appends one variable. Nothing is appended when the key or the value is too big.
pub fn put_pair(out: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<(), TooBig> {
    let key_length = length_of_key(key.len())?;
    let value_length = length_of_value(value.len())?;

    #[expect(clippy::arithmetic_side_effects, reason = "both lengths fit in 16 bits")]
    out.reserve(4 + key.len() + value.len());
    out.extend_from_slice(&key_length);
    out.extend_from_slice(key);
    out.extend_from_slice(&value_length);
    out.extend_from_slice(value);
    Ok(())
}

fn length_of_key(length: usize) -> Result<[u8; 2], TooBig> {
    u16::try_from(length).map(u16::to_le_bytes).map_err(|_| TooBig::Key(length))
}

fn length_of_value(length: usize) -> Result<[u8; 2], TooBig> {
    u16::try_from(length).map(u16::to_le_bytes).map_err(|_| TooBig::Value(length))
}

/// The first four bytes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub modifier1: u8,
    /// Bytes of the block that follows.
    pub block_length: u16,
    pub modifier2: u8,
}

impl Header {
    pub fn decode(bytes: [u8; HEADER_LENGTH]) -> Self {
        let [modifier1, low, high, modifier2] = bytes;
        Self { modifier1, block_length: u16::from_le_bytes([low, high]), modifier2 }
    }

    pub fn encode(self) -> [u8; HEADER_LENGTH] {
        header(self.modifier1, self.block_length, self.modifier2)
    }
}

/// A decoded packet. Everything points into the bytes it was decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet<'a> {
    pub header: Header,
    /// The variables in the order they were sent, duplicates included.
    pub pairs: Vec<Pair<'a>>,
    /// What follows the block: as much of the request body as the bytes hold.
    pub body: &'a [u8],
}

/// A variable: key, value.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

impl<'a> Packet<'a> {
    /// The value of a variable. Of duplicates the last counts, as with the servers in use.
    pub fn get(&self, key: &[u8]) -> Option<&'a [u8]> {
        get(&self.pairs, key)
    }
}

/// Why bytes are not a uwsgi packet. Offsets count from the start of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PacketError {
    /// The bytes end before the block does: more may come.
    #[error("incomplete packet: {0} more bytes are needed")]
    Incomplete(usize),
    /// A length points beyond the end of the block.
    #[error("the {part} at byte {offset} of the block runs past its end")]
    Overrun { part: Part, offset: usize },
    /// uWSGI refuses the whole request then ("uwsgi key cannot be null").
    #[error("empty key at byte {0} of the block")]
    EmptyKey(usize),
}

/// The half of a pair that an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Key,
    Value,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Key => "key",
            Self::Value => "value",
        })
    }
}

/// Decodes a packet whose block is complete in `bytes`.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "only of what is too short for what is subtracted from"
)]
pub fn decode(bytes: &[u8]) -> Result<Packet<'_>, PacketError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LENGTH>() else {
        return Err(PacketError::Incomplete(HEADER_LENGTH - bytes.len()));
    };
    let header = Header::decode(*header);
    let block_length = usize::from(header.block_length);
    let Some((block, body)) = rest.split_at_checked(block_length) else {
        return Err(PacketError::Incomplete(block_length - rest.len()));
    };
    Ok(Packet { header, pairs: decode_block(block)?, body })
}

/// Decodes the block alone, for a reader that took the header off first.
#[expect(clippy::arithmetic_side_effects, reason = "rest is the end of block")]
pub fn decode_block(block: &[u8]) -> Result<Vec<Pair<'_>>, PacketError> {
    let mut pairs = Vec::new();
    let mut rest = block;
    while !rest.is_empty() {
        let offset = block.len() - rest.len();
        let key = take_string(&mut rest).ok_or(PacketError::Overrun { part: Part::Key, offset })?;
        if key.is_empty() {
            return Err(PacketError::EmptyKey(offset));
        }
        let offset = block.len() - rest.len();
        let value =
            take_string(&mut rest).ok_or(PacketError::Overrun { part: Part::Value, offset })?;
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// The value of a variable among decoded pairs; the last of duplicates.
pub fn get<'a>(pairs: &[Pair<'a>], key: &[u8]) -> Option<&'a [u8]> {
    pairs.iter().rev().find(|(name, _)| *name == key).map(|&(_, value)| value)
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<2>()?;
    let (string, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    *rest = after;
    Some(string)
}

/// Whatever decodes must encode to the same bytes; an incomplete packet must be so for want of
/// bytes and nothing else.
#[allow(
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    reason = "the property that is tested"
)]
pub fn fuzz_packet(data: &[u8]) {
    match decode(data) {
        Ok(packet) => {
            let mut block = Vec::new();
            for (key, value) in &packet.pairs {
                assert!(!key.is_empty());
                put_pair(&mut block, key, value).expect("it fitted before");
            }
            assert_eq!(block_length(block.len()), Ok(packet.header.block_length));
            assert_eq!([&packet.header.encode(), &*block, packet.body].concat(), data);
        }
        Err(PacketError::Incomplete(missing)) => {
            assert!(0 < missing && missing <= LENGTH_MAX);
            let has_header = data.len() >= HEADER_LENGTH;
            let padded = [data, &vec![0; missing]].concat();
            assert!(!(has_header && matches!(decode(&padded), Err(PacketError::Incomplete(_)))));
        }
        Err(PacketError::Overrun { offset, .. } | PacketError::EmptyKey(offset)) => {
            assert!(HEADER_LENGTH + offset <= data.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_packet_on_the_wire() {
        let mut block = Vec::new();
        put_pair(&mut block, b"REQUEST_METHOD", b"GET").unwrap();
        put_pair(&mut block, b"HTTP_X_NAME", b"").unwrap();
        let header = header(0, block_length(block.len()).unwrap(), 7);
        assert_eq!(
            [&header, &*block].concat(),
            b"\x00\x24\x00\x07\x0e\x00REQUEST_METHOD\x03\x00GET\x0b\x00HTTP_X_NAME\x00\x00"
        );
    }

    #[test]
    fn sixteen_bits_are_the_limit() {
        let mut out = Vec::new();
        let fits = vec![b'x'; LENGTH_MAX];
        let too_big = vec![b'x'; LENGTH_MAX + 1];
        assert_eq!(put_pair(&mut out, &fits, &fits), Ok(()));
        out.clear();
        assert_eq!(put_pair(&mut out, &too_big, b""), Err(TooBig::Key(65536)));
        assert_eq!(put_pair(&mut out, b"", &too_big), Err(TooBig::Value(65536)));
        assert!(out.is_empty(), "a refused pair leaves nothing behind");
        assert_eq!(block_length(65535), Ok(65535));
        assert_eq!(block_length(65536).unwrap_err().to_string(), "uwsgi request is too big: 65536");
    }

    #[test]
    fn the_last_of_duplicates_counts() {
        let packet = decode(b"\x00\x0c\x00\x00\x01\x00A\x01\x001\x01\x00A\x01\x002body").unwrap();
        assert_eq!(packet.get(b"A"), Some(&b"2"[..]));
        assert_eq!(packet.get(b"B"), None);
        assert_eq!(packet.body, b"body");
    }

    #[test]
    fn refusals() {
        use PacketError::{EmptyKey, Incomplete, Overrun};
        let refused = |bytes: &[u8]| decode(bytes).unwrap_err();
        assert_eq!(refused(b""), Incomplete(4));
        assert_eq!(refused(b"\x00\x05\x00\x00\x01\x00A"), Incomplete(2));
        assert_eq!(refused(b"\x00\x01\x00\x00\x01"), Overrun { part: Part::Key, offset: 0 });
        assert_eq!(refused(b"\x00\x03\x00\x00\x09\x00A"), Overrun { part: Part::Key, offset: 0 });
        assert_eq!(
            refused(b"\x00\x06\x00\x00\x01\x00A\x09\x00v"),
            Overrun { part: Part::Value, offset: 3 }
        );
        assert_eq!(refused(b"\x00\x04\x00\x00\x00\x00\x00\x00"), EmptyKey(0));
    }

    proptest! {
        #[test]
        fn round_trip(
            (modifier1, modifier2) in any::<(u8, u8)>(),
            pairs in vec((vec(any::<u8>(), 1..40), vec(any::<u8>(), 0..200)), 0..30),
            body in vec(any::<u8>(), 0..50),
        ) {
            let mut block = Vec::new();
            for (key, value) in &pairs {
                put_pair(&mut block, key, value).unwrap();
            }
            let header = header(modifier1, block_length(block.len()).unwrap(), modifier2);
            let bytes = [&header, &*block, &*body].concat();

            let packet = decode(&bytes).unwrap();
            prop_assert_eq!(packet.header.modifier1, modifier1);
            prop_assert_eq!(packet.header.modifier2, modifier2);
            prop_assert_eq!(packet.body, &*body);
            let decoded: Vec<_> =
                packet.pairs.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            prop_assert_eq!(decoded, pairs);
            for end in 0..HEADER_LENGTH + block.len() {
                prop_assert!(matches!(decode(&bytes[..end]), Err(PacketError::Incomplete(_))));
            }
        }

        #[test]
        fn any_bytes(data in vec(any::<u8>(), 0..600)) {
            fuzz_packet(&data);
        }

        #[test]
        fn any_block(block in vec(0_u8..4, 0..60)) {
            let header = header(0, block_length(block.len()).unwrap(), 0);
            fuzz_packet(&[&header, &*block].concat());
        }
    }
}
