//! The status line, byte by byte, as nginx reads it (RFC 9112 section 4), but for controls in its text.

use super::Span;

/// The state between two calls, and the parts found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StatusLine {
    state: State,
    pub major: u16,
    pub minor: u16,
    pub code: u16,
    /// Code and text.
    pub status: Span,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// Within `HTTP/`; how many of its bytes have been seen.
    Protocol(usize),
    Major,
    /// How many digits it has.
    MajorDigits(u8),
    Minor,
    MinorDigits(u8),
    BeforeCode,
    /// How many digits it has.
    Code(u8),
    Text,
    LineCr,
    Done,
}

/// It is no status line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotAStatusLine;

/// What a status line begins with.
pub(super) const PROTOCOL: &[u8] = b"HTTP/";
const VERSION_DIGITS_MAX: u8 = 3;

impl StatusLine {
    /// Reads on at `*position`, up to `end`; whether the line is complete.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "the byte at this place has been seen in buf"
    )]
    pub fn scan(
        &mut self,
        buf: &[u8],
        position: &mut usize,
        end: usize,
    ) -> Result<bool, NotAStatusLine> {
        if self.state == State::Start
            && let Some((line, len)) = plain(buf.get(*position..end).unwrap_or_default(), *position)
        {
            *self = line;
            *position += len;
            return Ok(true);
        }
        while self.state != State::Done && *position < end {
            let Some(&byte) = buf.get(*position) else { break };
            self.state = self.step(byte, *position)?;
            *position += 1;
        }
        Ok(self.state == State::Done)
    }

    #[expect(
        clippy::arithmetic_side_effects,
        reason = "numbers of three digits at most, and seen < PROTOCOL.len()"
    )]
    fn step(&mut self, byte: u8, at: usize) -> Result<State, NotAStatusLine> {
        let digit = u16::from(byte.wrapping_sub(b'0'));
        let next = match (self.state, byte) {
            (State::Start, b'H') => State::Protocol(1),
            (State::Protocol(seen), _) if PROTOCOL.get(seen) == Some(&byte) => {
                if seen + 1 == PROTOCOL.len() { State::Major } else { State::Protocol(seen + 1) }
            }

            (State::Major, b'1'..=b'9') => {
                self.major = digit;
                State::MajorDigits(1)
            }
            (State::MajorDigits(digits), b'0'..=b'9') if digits < VERSION_DIGITS_MAX => {
                self.major = self.major * 10 + digit;
                State::MajorDigits(digits + 1)
            }
            (State::MajorDigits(_), b'.') => State::Minor,
            (State::Minor, b'0'..=b'9') => {
                self.minor = digit;
                State::MinorDigits(1)
            }
            (State::MinorDigits(digits), b'0'..=b'9') if digits < VERSION_DIGITS_MAX => {
                self.minor = self.minor * 10 + digit;
                State::MinorDigits(digits + 1)
            }

            (State::MinorDigits(_) | State::BeforeCode, b' ') => State::BeforeCode,
            (State::BeforeCode, b'0'..=b'9') => {
                self.status = Span::new(at, at);
                self.code = digit;
                State::Code(1)
            }
            (State::Code(digits @ 1..3), b'0'..=b'9') => {
                self.code = self.code * 10 + digit;
                State::Code(digits + 1)
            }
            (State::Code(3) | State::Text, b'\r') => {
                self.status.end = at as u32;
                State::LineCr
            }
            (State::Code(3) | State::Text, b'\n') => {
                self.status.end = at as u32;
                State::Done
            }
            // IIS sends "403.1".
            (State::Code(3), b' ' | b'.') => State::Text,
            // RFC 9112 section 4: HTAB, SP, VCHAR, obs-text.
            (State::Text, _) if byte == b'\t' || !byte.is_ascii_control() => State::Text,
            (State::LineCr, b'\n') => State::Done,

            _ => return Err(NotAStatusLine),
        };
        Ok(next)
    }
}

/// The common case, as one comparison: a whole line of a version 1 and a code of three digits, at
/// `start`. Gives its length with the line end. `None`: byte by byte is to tell.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "lengths of parts of the line, and three digits"
)]
fn plain(line: &[u8], start: usize) -> Option<(StatusLine, usize)> {
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ b'0'..=b'1', b' ', rest @ ..] = line
    else {
        return None;
    };
    let [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ', ..] = rest else { return None };
    let len = memchr::memchr(b'\r', rest)?;
    let (text, [b'\r', b'\n', ..]) = rest.split_at_checked(len)? else { return None };
    if text.iter().any(u8::is_ascii_control) {
        return None;
    }
    let [a, b, c] = [a, b, c].map(|digit| u16::from(digit - b'0'));
    let at = start + line.len() - rest.len();
    let parsed = StatusLine {
        state: State::Done,
        major: 1,
        minor: u16::from(minor - b'0'),
        code: a * 100 + b * 10 + c,
        status: Span::new(at, at + len),
    };
    Some((parsed, at + len + 2 - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> Result<Option<(u16, u16, u16, &str)>, NotAStatusLine> {
        let (mut line, mut position) = (StatusLine::default(), 0);
        let done = line.scan(text.as_bytes(), &mut position, text.len())?;
        let status = &text[line.status.start as usize..line.status.end as usize];
        Ok(done.then_some((line.major, line.minor, line.code, status)))
    }

    #[test]
    fn accepted() {
        assert_eq!(scan("HTTP/1.1 200 OK\r\n"), Ok(Some((1, 1, 200, "200 OK"))));
        assert_eq!(scan("HTTP/1.0   404\n"), Ok(Some((1, 0, 404, "404"))));
        assert_eq!(scan("HTTP/1.1 200 \r\n"), Ok(Some((1, 1, 200, "200 "))));
        assert_eq!(scan("HTTP/1.1 000\r\n"), Ok(Some((1, 1, 0, "000"))));
        assert_eq!(scan("HTTP/12.345 999 é\t\n"), Ok(Some((12, 345, 999, "999 é\t"))));
        assert_eq!(scan("HTTP/1.1 403.1 Foo bar\n"), Ok(Some((1, 1, 403, "403.1 Foo bar"))));
        assert_eq!(scan("HTTP/1.1 200 OK\r"), Ok(None));
    }

    #[test]
    fn refused() {
        for text in [
            "\r\n",
            " HTTP/1.1 200 OK\n",
            "http/1.1 200 OK\n",
            "HTTP/0.9 200 OK\n",
            "HTTP/1 200 OK\n",
            "HTTP/1. 200 OK\n",
            "HTTP/1.1\t200 OK\n",
            "HTTP/1.1 20 OK\n",
            "HTTP/1.1 2000 OK\n",
            "HTTP/1.1 2 0 0 OK\n",
            "HTTP/1.1 200OK\n",
            "HTTP/1.1 200\tOK\n",
            "HTTP/1.1 200 O\rK\n",
            "HTTP/1.1 200 O\0K\n",
            "HTTP/1.1 200 \x1b[31m\n",
            "HTTP/1.1 200 OK\x7f\n",
            "HTTP/1.1 abc\n",
            "HTTP/1.1\r\n",
            "HTTP/1.1000 200 OK\n",
            "hello",
        ] {
            assert_eq!(scan(text), Err(NotAStatusLine), "{text:?}");
        }
    }
}
