//! The trailer section of an upstream's chunked body (RFC 9112 section 7.1.2): lines like those of a
//! head, up to the empty one.

use super::header::{Field, Headers, Known};
use super::header_line::{HeaderLine, Invalid, Line, NameRules};
use super::refusal::Quoted;

/// What is wrong with a trailer section; the texts are nginx's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrailerError {
    /// RFC 9112 section 5.1 and 5.2.
    #[error("upstream sent invalid trailer: \"{seen}\\x{offender:02x}...\"")]
    Invalid { seen: Quoted, offender: u8 },
    /// Longer than the buffer for heads.
    #[error("upstream sent too big trailers")]
    TooBig,
}

/// A trailer section as it comes in, in bytes of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trailers {
    bytes: Vec<u8>,
    headers: Headers,
    position: usize,
    line: HeaderLine,
    is_done: bool,
}

impl Trailers {
    /// The lines, and the bytes that they refer to.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The empty line has been read.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Reads on; tells how many bytes of the input belong to the section, which must fit in `max`.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "position and end only grow: the bytes before have been read, and are there"
    )]
    pub fn read(&mut self, input: &[u8], max: usize) -> Result<usize, TrailerError> {
        if self.is_done {
            return Ok(0);
        }
        let before = self.bytes.len();
        let room = max.saturating_sub(before);
        self.bytes.extend_from_slice(input.get(..room).unwrap_or(input));
        loop {
            let end = self.bytes.len();
            let rules = NameRules::Response;
            match self.line.scan(&self.bytes, &mut self.position, end, rules) {
                Ok(Line::Field) => {
                    let HeaderLine { name, value, .. } = self.line;
                    let known = Known::of(name.of(&self.bytes));
                    self.headers.push(Field { name, value, known });
                }
                Ok(Line::End) => {
                    self.is_done = true;
                    self.bytes.truncate(self.position);
                    return Ok(self.position - before);
                }
                Ok(Line::Partial) if end >= max => return Err(TrailerError::TooBig),
                Ok(Line::Partial) => return Ok(end - before),
                Err(Invalid { start, at }) => {
                    return Err(TrailerError::Invalid {
                        seen: Quoted::new(self.bytes.get(start..at).unwrap_or_default()),
                        offender: self.bytes.get(at).copied().unwrap_or_default(),
                    });
                }
            }
        }
    }
}

/// However a section arrives, the result is the same, and it is clean.
#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
pub fn fuzz_trailer(data: &[u8]) {
    for max in [10, 4096] {
        let mut whole = Trailers::default();
        let read = whole.read(data, max);
        let mut slow = Trailers::default();
        let mut consumed = 0;
        let mut failed = None;
        for byte in data {
            match slow.read(std::slice::from_ref(byte), max) {
                Ok(n) => consumed += n,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        match read {
            Ok(n) => {
                assert_eq!((n, failed), (consumed, None));
                assert_eq!(whole.headers, slow.headers);
                assert!(n <= data.len() && whole.bytes.len() <= max);
            }
            Err(error) => assert_eq!(Some(error), failed),
        }
        for field in &whole.headers {
            let (name, value) = (field.name.of(&whole.bytes), field.value.of(&whole.bytes));
            assert!(!name.is_empty() && !value.iter().any(|byte| b"\0\r\n".contains(byte)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8]) -> (Result<usize, TrailerError>, Trailers) {
        fuzz_trailer(text);
        let mut trailers = Trailers::default();
        (trailers.read(text, 64), trailers)
    }

    #[test]
    fn sections() {
        let (read_, trailers) = read(b"A: 1\r\nb:2\n\r\nHTTP/1.1");
        assert_eq!(read_, Ok(12));
        assert!(trailers.is_done());
        let lines: Vec<_> = trailers
            .headers()
            .iter()
            .map(|field| (field.name.of(trailers.bytes()), field.value.of(trailers.bytes())))
            .collect();
        assert_eq!(lines, [(&b"A"[..], &b"1"[..]), (b"b", b"2")]);

        let (read_, trailers) = read(b"\r\n");
        assert_eq!(read_, Ok(2));
        assert!(trailers.is_done() && trailers.headers().is_empty());
        assert!(!read(b"A: 1\r\n").1.is_done());
    }

    #[test]
    fn what_is_wrong() {
        let text = |section: &[u8]| read(section).0.unwrap_err().to_string();
        assert_eq!(text(b"A : 1\r\n"), "upstream sent invalid trailer: \"A\\x20...\"");
        assert_eq!(text(b": 1\r\n"), "upstream sent invalid trailer: \"\\x3a...\"");
        assert_eq!(text(&[b'a'; 64]), "upstream sent too big trailers");
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_trailer(&data);
        }

        #[test]
        fn likely_sections(data in "(A|b|: |:| |\r\n|\n|x){0,24}") {
            fuzz_trailer(data.as_bytes());
        }
    }
}
