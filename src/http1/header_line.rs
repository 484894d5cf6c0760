//! One header line, byte by byte, as nginx reads it; the authority on what is a valid line.
//!
//! Every byte is looked at once, however the head arrives, and a refusal comes with the byte that
//! causes it, not with the end of the line.

use super::Span;

/// What a name may hold beyond letters, digits and `-`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameRules {
    /// `_` is as good as a letter with `underscores_in_headers on`; others make the line odd.
    Request { underscores: bool },
    /// Everything but controls, space and DEL is fine; `HTTP/…` lines are skipped.
    Response,
}

/// What a line turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Not complete within the given bytes.
    Partial,
    /// A header; its name and value are in the scanner.
    Field,
    /// The empty line.
    End,
}

/// The line cannot be accepted because of the byte at `at`; what it has before is fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    pub start: usize,
    pub at: usize,
}

/// The state between two calls, and the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HeaderLine {
    state: State,
    pub start: usize,
    pub name: Span,
    pub value: Span,
    /// The name holds a byte that the rules for requests do not know.
    pub odd_name: bool,
    /// Where the value ends if nothing but spaces and the line's end follows.
    value_end: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Name,
    BeforeValue,
    Value,
    /// Spaces that are part of the value only if something follows them.
    SpaceInValue,
    /// After the CR at the end of a header.
    FieldCr,
    /// After the CR of the empty line.
    HeadCr,
    /// A stray `HTTP/1.x …` among the headers (IIS sends them).
    Ignored,
}

impl HeaderLine {
    /// Reads on at `*position`, up to `end`. After `Field` the scanner is ready for the next line.
    pub fn scan(
        &mut self,
        buf: &[u8],
        position: &mut usize,
        end: usize,
        rules: NameRules,
    ) -> Result<Line, Invalid> {
        while *position < end {
            let Some(&byte) = buf.get(*position) else { break };
            let at = *position;
            self.state = match self.state {
                State::Start => {
                    self.start = at;
                    self.odd_name = false;
                    match byte {
                        b'\r' => State::HeadCr,
                        b'\n' => return Ok(self.finish(position, Line::End)),
                        b':' => return Err(self.invalid(at)),
                        _ => self.name_byte(byte, at, rules)?,
                    }
                }
                State::Name => match byte {
                    b':' => {
                        self.name = Span::new(self.start, at);
                        State::BeforeValue
                    }
                    b'\r' | b'\n' => {
                        self.name = Span::new(self.start, at);
                        self.value = Span::new(at, at);
                        if byte == b'\n' {
                            return Ok(self.finish(position, Line::Field));
                        }
                        self.value_end = at;
                        State::FieldCr
                    }
                    b'/' if rules == NameRules::Response
                        && buf.get(self.start..at) == Some(b"HTTP") =>
                    {
                        State::Ignored
                    }
                    _ => self.name_byte(byte, at, rules)?,
                },
                State::BeforeValue => {
                    self.value = Span::new(at, at);
                    match byte {
                        b' ' => State::BeforeValue,
                        _ => match self.value_byte(byte, at)? {
                            Some(state) => state,
                            None => return Ok(self.finish(position, Line::Field)),
                        },
                    }
                }
                State::Value => match self.value_byte(byte, at)? {
                    Some(state) => state,
                    None => return Ok(self.finish(position, Line::Field)),
                },
                State::SpaceInValue => match byte {
                    b' ' => State::SpaceInValue,
                    b'\r' => State::FieldCr,
                    b'\n' => return Ok(self.finish(position, Line::Field)),
                    0 => return Err(self.invalid(at)),
                    _ => State::Value,
                },
                State::FieldCr => match byte {
                    b'\r' => State::FieldCr,
                    b'\n' => return Ok(self.finish(position, Line::Field)),
                    // The offender is the CR that was not the end.
                    _ => return Err(self.invalid(self.value_end)),
                },
                State::HeadCr => match byte {
                    b'\n' => return Ok(self.finish(position, Line::End)),
                    _ => return Err(self.invalid(self.start)),
                },
                State::Ignored => match byte {
                    b'\n' => State::Start,
                    _ => State::Ignored,
                },
            };
            step_over(position);
        }
        Ok(Line::Partial)
    }

    /// A byte of the name that has no meaning of its own.
    fn name_byte(&mut self, byte: u8, at: usize, rules: NameRules) -> Result<State, Invalid> {
        let known = match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' => true,
            0..=b' ' | 0x7f => return Err(self.invalid(at)),
            b'_' => rules != NameRules::Request { underscores: false },
            _ => rules == NameRules::Response,
        };
        self.odd_name |= !known;
        Ok(State::Name)
    }

    /// A byte within the value; `None` at the end of the line.
    fn value_byte(&mut self, byte: u8, at: usize) -> Result<Option<State>, Invalid> {
        let state = match byte {
            b' ' => State::SpaceInValue,
            b'\r' => State::FieldCr,
            b'\n' => {
                self.value.end = at as u32;
                return Ok(None);
            }
            0 => return Err(self.invalid(at)),
            _ => return Ok(Some(State::Value)),
        };
        self.value.end = at as u32;
        self.value_end = at;
        Ok(Some(state))
    }

    fn invalid(&self, at: usize) -> Invalid {
        Invalid { start: self.start, at }
    }

    fn finish(&mut self, position: &mut usize, line: Line) -> Line {
        step_over(position);
        self.state = State::Start;
        line
    }
}

#[expect(clippy::arithmetic_side_effects, reason = "the byte at this place has been seen in buf")]
fn step_over(position: &mut usize) {
    *position += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: NameRules = NameRules::Request { underscores: false };

    /// Name, value, and whether the name is odd.
    type Parts<'a> = (&'a [u8], &'a [u8], bool);

    /// The first line, or where the offender is.
    fn field(text: &[u8], rules: NameRules) -> Result<Option<Parts<'_>>, usize> {
        let (mut line, mut position) = (HeaderLine::default(), 0);
        match line.scan(text, &mut position, text.len(), rules) {
            Ok(Line::Field) => {
                assert_eq!(position, text.len());
                Ok(Some((line.name.of(text), line.value.of(text), line.odd_name)))
            }
            Ok(_) => Ok(None),
            Err(invalid) => Err(invalid.at),
        }
    }

    #[test]
    fn values_are_trimmed_of_spaces_only() {
        let value = |text: &'static str| field(text.as_bytes(), REQUEST).map(|f| f.map(|f| f.1));
        assert_eq!(value("A: b\r\n"), Ok(Some(&b"b"[..])));
        assert_eq!(value("A:b\n"), Ok(Some(&b"b"[..])));
        assert_eq!(value("A:  b c  \r\n"), Ok(Some(&b"b c"[..])));
        assert_eq!(value("A:  b  c \n"), Ok(Some(&b"b  c"[..])));
        assert_eq!(value("A: \tb\t \r\n"), Ok(Some(&b"\tb\t"[..])));
        assert_eq!(value("A: b\r\r\n"), Ok(Some(&b"b"[..])));
        assert_eq!(value("A:\r\n"), Ok(Some(&b""[..])));
        assert_eq!(value("A:   \n"), Ok(Some(&b""[..])));
        assert_eq!(value("A\r\n"), Ok(Some(&b""[..])));
        assert_eq!(value("A\n"), Ok(Some(&b""[..])));
        assert_eq!(value("A: \x01\x7f\r\n"), Ok(Some(&b"\x01\x7f"[..])));
        assert_eq!(value("A: b"), Ok(None));
        assert_eq!(value("A: b\r"), Ok(None));
        assert_eq!(value("\r\n"), Ok(None));
    }

    #[test]
    fn names() {
        let odd = |text: &'static str, rules| field(text.as_bytes(), rules).map(|f| f.map(|f| f.2));
        assert_eq!(odd("X-1: b\n", REQUEST), Ok(Some(false)));
        assert_eq!(odd("X_1: b\n", REQUEST), Ok(Some(true)));
        assert_eq!(odd("X_1: b\n", NameRules::Request { underscores: true }), Ok(Some(false)));
        assert_eq!(odd("X_1: b\n", NameRules::Response), Ok(Some(false)));
        assert_eq!(odd("_: b\n", REQUEST), Ok(Some(true)));
        assert_eq!(odd("é: b\n", REQUEST), Ok(Some(true)));
        assert_eq!(odd("X(1): b\n", NameRules::Response), Ok(Some(false)));
        assert_eq!(odd("HTTP/1: b\n", REQUEST), Ok(Some(true)));
    }

    #[test]
    fn offenders() {
        let at = |text: &'static str| field(text.as_bytes(), REQUEST);
        assert_eq!(at(": b\n"), Err(0));
        assert_eq!(at(" A: b\n"), Err(0));
        assert_eq!(at("\tA: b\n"), Err(0));
        assert_eq!(at("A : b\n"), Err(1));
        assert_eq!(at("A\t: b\n"), Err(1));
        assert_eq!(at("A\0: b\n"), Err(1));
        assert_eq!(at("A\x7f: b\n"), Err(1));
        assert_eq!(at("A: b\0\n"), Err(4));
        assert_eq!(at("A: b \0\n"), Err(5));
        assert_eq!(at("A:\0\n"), Err(2));
        assert_eq!(at("A: b\rc\n"), Err(4));
        assert_eq!(at("A: b \rc\n"), Err(4));
        assert_eq!(at("A\rc\n"), Err(1));
        assert_eq!(at("\rA: b\n"), Err(0));
    }

    #[test]
    fn a_stray_status_line_is_skipped_in_responses() {
        let text = b"HTTP/1.1 200 OK\r\nA: b\r\n";
        assert_eq!(field(text, NameRules::Response), Ok(Some((&b"A"[..], &b"b"[..], false))));
    }
}
