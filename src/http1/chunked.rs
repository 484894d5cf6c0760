//! The chunked transfer coding (RFC 9112 section 7.1), both ways.
//!
//! Requests and responses are read by the same strict rules: CRLF everywhere, since a lone LF is
//! where two parsers come to disagree. Extensions and trailers are read over and dropped, but trailers
//! must be what header lines are: see [`super::header_line`].

use super::Span;
use super::framing::LENGTH_MAX;
use super::uri::hex_digit;

/// Ends a body that has no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Bytes of one chunk-size line; more is an attack, not an extension.
const SIZE_LINE_MAX: u32 = 4 * 1024;
/// Bytes of all trailer fields.
const TRAILERS_MAX: u32 = 32 * 1024;
/// What [`chunk_head`] needs: sixteen digits, CR, LF.
pub const CHUNK_HEAD_MAX: usize = 18;

/// The body is not validly chunked: `client sent invalid chunked body`, `upstream sent invalid
/// chunked response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid chunked body")]
pub struct ChunkError;

/// What one call has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are done with, data included. Less than the input when data was
    /// found, and at the end of the body.
    pub consumed: usize,
    /// Body bytes, as a part of the input; may be empty.
    pub data: Span,
    /// The last byte of the body has been consumed; what follows is not part of it.
    pub done: bool,
}

/// Takes the coding off a body, piece by piece; holds no bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoder {
    state: State,
    /// Bytes of the chunk that are still to come.
    size: u64,
    /// Bytes of the size line, or of the trailers, so far.
    scanned: u32,
    /// The body ends where its trailers begin.
    leaves_trailers: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    SizeStart,
    Size,
    Extension,
    SizeCr,
    Data,
    DataEnd,
    DataCr,
    /// At the start of a line after the last chunk.
    TrailerStart,
    /// In the name of a field.
    Trailer,
    /// Behind its colon.
    TrailerValue,
    TrailerCr,
    LastCr,
    Done,
}

impl Decoder {
    /// One that is done with the last chunk: the trailer section is for others to read.
    pub fn leaving_trailers() -> Self {
        Decoder { leaves_trailers: true, ..Decoder::default() }
    }

    /// Reads on. To be called with the rest of the input until it is all consumed or `done`.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "in the loop at < input.len(), and end - at <= size"
    )]
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            if self.state == State::Data {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                let end = at + left.min(input.len() - at);
                self.size -= (end - at) as u64;
                if self.size == 0 {
                    self.state = State::DataEnd;
                }
                return Ok(Step { consumed: end, data: Span::new(at, end), done: false });
            }
            if self.state == State::Done {
                break;
            }
            self.state = self.step(byte)?;
            at += 1;
        }
        Ok(Step { consumed: at, data: Span::new(at, at), done: self.is_done() })
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes of data that the chunk under way is still to bring.
    pub fn chunk_left(&self) -> u64 {
        self.size
    }

    /// The least number of bytes, framing and data, that the body must still have.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "size <= LENGTH_MAX, which is half of what a u64 holds"
    )]
    pub fn remaining_at_least(&self) -> u64 {
        let last = LAST_CHUNK.len() as u64;
        match self.state {
            State::SizeStart => last,
            State::Size | State::Extension if self.size == 0 => last - 1,
            // CRLF after the size, the data, CRLF after it.
            State::Size | State::Extension => 2 + self.size + 2 + last,
            State::SizeCr if self.size == 0 => 3,
            State::SizeCr => 1 + self.size + 2 + last,
            State::Data | State::DataEnd => self.size + 2 + last,
            State::DataCr => 1 + last,
            State::TrailerStart => 2,
            // The line may end at once.
            State::Trailer | State::TrailerValue => 4,
            State::TrailerCr => 3,
            State::LastCr => 1,
            State::Done => 0,
        }
    }

    /// One byte of framing.
    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        self.count()?;
        let next = match (self.state, byte) {
            (State::SizeStart, _) => {
                self.size = u64::from(hex_digit(byte).ok_or(ChunkError)?);
                State::Size
            }
            (State::Size | State::Extension, b'\r') => State::SizeCr,
            (State::Size, b';' | b' ' | b'\t') => State::Extension,
            (State::Size, _) => {
                let digit = u64::from(hex_digit(byte).ok_or(ChunkError)?);
                let size = self.size.checked_mul(16).and_then(|size| size.checked_add(digit));
                self.size = size.filter(|&size| size <= LENGTH_MAX).ok_or(ChunkError)?;
                State::Size
            }
            (State::SizeCr, b'\n') => {
                self.scanned = 0;
                match self.size {
                    0 if self.leaves_trailers => State::Done,
                    0 => State::TrailerStart,
                    _ => State::Data,
                }
            }
            (State::DataEnd, b'\r') => State::DataCr,
            (State::DataCr, b'\n') => {
                self.scanned = 0;
                State::SizeStart
            }

            (State::TrailerStart, b'\r') => State::LastCr,
            (State::Trailer | State::TrailerValue, b'\r') => State::TrailerCr,
            (State::TrailerCr, b'\n') => State::TrailerStart,
            (State::LastCr, b'\n') => State::Done,
            // A lone LF, a field without a name, a NUL.
            (State::Extension | State::TrailerValue, b'\n')
            | (State::TrailerStart, b':')
            | (State::TrailerValue, 0) => return Err(ChunkError),
            (State::Extension, _) => State::Extension,
            (State::Trailer, b':') | (State::TrailerValue, _) => State::TrailerValue,
            (State::TrailerStart | State::Trailer, b'!'..=b'~' | 0x80..) => State::Trailer,
            _ => return Err(ChunkError),
        };
        Ok(next)
    }

    /// Holds the bytes that are only read over to their limit.
    fn count(&mut self) -> Result<(), ChunkError> {
        self.scanned = self.scanned.saturating_add(1);
        let max = match self.state {
            State::TrailerStart
            | State::Trailer
            | State::TrailerValue
            | State::TrailerCr
            | State::LastCr => TRAILERS_MAX,
            _ => SIZE_LINE_MAX,
        };
        if self.scanned > max { Err(ChunkError) } else { Ok(()) }
    }
}

/// What comes before a chunk of `size` bytes, as nginx writes it: `1f\r\n`. After the chunk comes
/// CRLF. A size of 0 would end the body: see [`LAST_CHUNK`].
#[expect(
    clippy::arithmetic_side_effects,
    reason = "a usize has BITS bits, no more of them zero, and so sixteen hex digits at most"
)]
pub fn chunk_head(size: usize, out: &mut [u8; CHUNK_HEAD_MAX]) -> &[u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1) as usize;
    let len = digits + 2;
    let mut rest = size;
    for digit in out.iter_mut().take(digits).rev() {
        *digit = DIGITS.get(rest % 16).copied().unwrap_or_default();
        rest /= 16;
    }
    for (byte, &end) in out.iter_mut().skip(digits).zip(b"\r\n") {
        *byte = end;
    }
    out.get(..len).unwrap_or_default()
}

/// The body is the same however it is cut, and what is still missing is never overstated.
#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
pub fn fuzz_chunked(data: &[u8]) {
    let whole = decode_in_pieces(data, data.len().max(1));
    for piece in [1, 2, 7] {
        assert_eq!(decode_in_pieces(data, piece), whole);
    }
    // All data up to an error is given out before it.
    let Ok((body, consumed)) = whole else { return };
    assert!(body.len() <= consumed && consumed <= data.len());
    let mut decoder = Decoder::default();
    for at in 0..consumed {
        assert!(decoder.remaining_at_least() <= (consumed - at) as u64);
        let one = data.get(at..=at).unwrap_or_default();
        assert_eq!(decoder.decode(one).map(|step| step.consumed), Ok(1));
    }
    assert!(decoder.is_done() && decoder.remaining_at_least() == 0);
}

/// The body and its encoded length; `None` where it is not complete.
#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
fn decode_in_pieces(data: &[u8], piece: usize) -> Result<(Vec<u8>, usize), Option<ChunkError>> {
    let (mut decoder, mut body, mut at) = (Decoder::default(), Vec::new(), 0);
    while at < data.len() {
        let input = data.get(at..data.len().min(at + piece)).unwrap_or_default();
        let step = decoder.decode(input).map_err(Some)?;
        assert!(step.consumed > 0 && step.consumed <= input.len());
        assert!(step.consumed == input.len() || step.done || !step.data.is_empty());
        body.extend_from_slice(step.data.of(input));
        at += step.consumed;
        if step.done {
            return Ok((body, at));
        }
    }
    Err(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(text: &[u8]) -> Result<(Vec<u8>, usize), Option<ChunkError>> {
        fuzz_chunked(text);
        decode_in_pieces(text, text.len().max(1))
    }

    #[test]
    fn accepted() {
        for (text, body) in [
            (&b"0\r\n\r\n"[..], &b""[..]),
            (b"000\r\n\r\n", b""),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
            (
                b"0005;a=b\r\nhello\r\nA \tx\r\n0123456789\r\n0\r\nT_(): : x\x01\t\r\nU\r\nV:\r\n\r\n",
                b"hello0123456789",
            ),
            (b"1;\"a\r\nx\r\n0;\r\n\r\n", b"x"),
        ] {
            assert_eq!(decode(text), Ok((body.to_vec(), text.len())));
            let followed = [text, b"GET / HTTP/1.1"].concat();
            assert_eq!(decode(&followed), Ok((body.to_vec(), text.len())));
            assert_eq!(decode(&text[..text.len() - 1]), Err(None));
        }
    }

    #[test]
    fn refused() {
        for text in [
            &b"\r\n"[..],
            b"0x5\r\nhello",
            b" 5\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"5\n",
            b"5;a\n",
            b"5\rx",
            b"5;a\rb",
            b"5\r\nhelloo\r\n",
            b"5\r\nhello\n",
            b"5\r\nhello\rx",
            b"0\r\n\n",
            b"0\r\nT: x\n",
            b"0\r\nT: x\ry",
            b"0\r\n\rx",
            b"0\r\nT : x\r\n",
            b"0\r\nT\t: x\r\n",
            b"0\r\nT\0: x\r\n",
            b"0\r\nT\x7f: x\r\n",
            b"0\r\n: x\r\n",
            b"0\r\n x\r\n",
            b"0\r\nT: x\r\n\tfolded\r\n",
            b"0\r\nT: x\0\r\n",
            b"0\r\nT\n",
            b"5 a\n",
            b"8000000000000000\r\n",
            b"ffffffffffffffffff\r\n",
        ] {
            assert_eq!(
                decode(text),
                Err(Some(ChunkError)),
                "{:?}",
                text.escape_ascii().to_string()
            );
        }
        assert_eq!(decode(b"7fffffffffffffff\r\n"), Err(None));
    }

    #[test]
    fn what_is_read_over_is_limited() {
        let long = |start: &[u8], len: usize| [start, &vec![b'0'; len][..]].concat();
        assert_eq!(decode(&long(b"", 4000)), Err(None));
        assert_eq!(decode(&long(b"", 5000)), Err(Some(ChunkError)));
        assert_eq!(decode(&long(b"5;", 5000)), Err(Some(ChunkError)));
        assert_eq!(decode(&long(b"0\r\n", 32_000)), Err(None));
        assert_eq!(decode(&long(b"0\r\n", 33_000)), Err(Some(ChunkError)));
        // Each size line has its own limit.
        let many = [&b"1\r\nx\r\n".repeat(5000)[..], LAST_CHUNK].concat();
        assert_eq!(decode(&many).map(|(body, _)| body.len()), Ok(5000));
    }

    #[test]
    fn trailers_may_be_left() {
        let mut decoder = Decoder::leaving_trailers();
        let text = b"1\r\nx\r\n0;a\r\nT: x\r\n\r\n";
        let step = decoder.decode(text).unwrap();
        assert_eq!((step.data.of(text), step.done), (&b"x"[..], false));
        let last = decoder.decode(&text[step.consumed..]).unwrap();
        assert!(last.done && text[step.consumed + last.consumed..].starts_with(b"T: x"));
    }

    #[test]
    fn heads() {
        let mut out = [0; CHUNK_HEAD_MAX];
        assert_eq!(chunk_head(0, &mut out), b"0\r\n");
        assert_eq!(chunk_head(31, &mut out), b"1f\r\n");
        assert_eq!(chunk_head(0x10000, &mut out), b"10000\r\n");
        assert_eq!(chunk_head(usize::MAX, &mut out), b"ffffffffffffffff\r\n");
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_chunked(&data);
        }

        #[test]
        fn likely_bytes(data in "([0-9a-fA-F]|\r\n|\r|\n|;| |x|0\r\n\r\n|3\r\nabc\r\n){0,12}") {
            fuzz_chunked(data.as_bytes());
        }

        #[test]
        fn what_is_encoded_is_decoded(chunks in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 1..50), 0..8))
        {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(chunk_head(chunk.len(), &mut [0; CHUNK_HEAD_MAX]));
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(LAST_CHUNK);
            prop_assert_eq!(decode(&text), Ok((chunks.concat(), text.len())));
        }
    }
}
