//! HTTP/1 as values: bytes in, values out. No I/O, no clock, no async.
//!
//! A message head is read by [`request::parse`] or [`response::parse`] into a structure that only
//! holds [`Span`]s of the caller's buffer, so that reading a head allocates nothing once the
//! structure has been used a few times. Tokenising goes by httparse as far as the head is plain;
//! from the first line that is not, `request_line` and `header_line` walk byte by byte and give
//! nginx's verdict. What is refused, with which status and in which words, is one table per side
//! in [`refusal`].

pub mod chunked;
pub mod date;
pub mod encode;
pub mod framing;
pub mod header;
pub mod host;
pub mod refusal;
pub mod request;
pub mod response;
pub mod trailer;
pub mod uri;

mod header_line;
mod limits;
mod method;
mod plain;
mod request_line;
mod status_line;

/// A part of a buffer, by offsets: it stays true when the buffer grows or moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    pub fn new(start: usize, end: usize) -> Self {
        Span { start: start as u32, end: end as u32 }
    }

    /// The bytes meant; empty if the buffer is not the one the span was made for.
    pub fn of(self, buf: &[u8]) -> &[u8] {
        buf.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// What a decimal digit is worth.
fn decimal_digit(byte: u8) -> Option<u8> {
    // The digits of ASCII are 0x30 to 0x39.
    byte.is_ascii_digit().then_some(byte & 15)
}

/// Whether a byte may stand in a token: a method, a field name, a protocol (RFC 9110 section 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The head ends after `len` bytes of the buffer; what precedes it (empty lines) included.
    Complete { len: usize },
    /// More bytes are needed. `in_headers`: the first line is complete.
    Partial { in_headers: bool },
}

/// What the `Connection` header says about the time after this message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionOption {
    /// Nothing: the version decides.
    #[default]
    None,
    Close,
    KeepAlive,
}

impl ConnectionOption {
    /// nginx looks for the words anywhere in the value, in any case, `close` first.
    fn of(value: &[u8]) -> Self {
        if contains_ignore_case(value, b"close") {
            ConnectionOption::Close
        } else if contains_ignore_case(value, b"keep-alive") {
            ConnectionOption::KeepAlive
        } else {
            ConnectionOption::None
        }
    }
}

fn contains_ignore_case(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_never_panics() {
        assert_eq!(Span::new(1, 3).of(b"abcd"), b"bc");
        assert_eq!(Span::new(1, 9).of(b"abcd"), b"");
        assert_eq!(Span { start: 3, end: 1 }.of(b"abcd"), b"");
        assert_eq!(Span { start: 3, end: 1 }.len(), 0);
    }

    #[test]
    fn connection_words_are_found_anywhere() {
        assert_eq!(ConnectionOption::of(b"Upgrade, CLOSE"), ConnectionOption::Close);
        assert_eq!(ConnectionOption::of(b"keep-alive, close"), ConnectionOption::Close);
        assert_eq!(ConnectionOption::of(b"Keep-Alive"), ConnectionOption::KeepAlive);
        assert_eq!(ConnectionOption::of(b"upgrade"), ConnectionOption::None);
        assert_eq!(ConnectionOption::of(b""), ConnectionOption::None);
    }
}
