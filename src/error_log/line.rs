//! One line of the error log, put together in place.

use std::fmt::{self, Write as _};
use std::io;

use serde::{Deserialize, Serialize};

use super::{Context, Level};
use crate::local_time::LocalTime;

/// Bytes of a line, its line feed included; what is longer is cut.
pub const LINE_LENGTH_MAX: usize = 2048;

/// A line in the making.
#[derive(Debug)]
pub struct Line {
    bytes: [u8; LINE_LENGTH_MAX],
    /// length < `LINE_LENGTH_MAX`: there is always room for the line feed.
    length: usize,
}

impl Line {
    pub fn new() -> Self {
        Self { bytes: [0; LINE_LENGTH_MAX], length: 0 }
    }

    /// `2026/11/22 07:35:16 [error] PID#TID: *CONN `
    pub fn put_head(&mut self, time: &LocalTime, level: Level, connection: Option<u64>) {
        // Neither number is kept: both change when the process goes to the background.
        let process = std::process::id();
        let thread = rustix::thread::gettid().as_raw_nonzero();
        self.put_bytes(time.error_log());
        self.put(format_args!(" [{level}] {process}#{thread}: "));
        if let Some(connection) = connection {
            self.put(format_args!("*{connection} "));
        }
    }

    /// `nginx: [emerg] `
    pub fn put_startup_head(&mut self, level: Level) {
        self.put(format_args!("nginx: [{level}] "));
    }

    pub fn put_message(
        &mut self,
        text: fmt::Arguments<'_>,
        errno: Option<i32>,
        context: &Context<'_>,
    ) {
        self.put_text(text, errno);
        self.put_context(context);
    }

    /// A message whose context was put into words before.
    pub fn put_message_with_tail(
        &mut self,
        text: fmt::Arguments<'_>,
        errno: Option<i32>,
        tail: &Tail,
    ) {
        self.put_text(text, errno);
        self.put_bytes(&tail.0);
    }

    fn put_text(&mut self, text: fmt::Arguments<'_>, errno: Option<i32>) {
        self.put(text);
        if let Some(errno) = errno {
            self.make_room_for_errno();
            self.put(format_args!(" ({})", Errno(errno)));
        }
    }

    /// Ends a long text early, as nginx does: what went wrong is worth more than the rest of it.
    fn make_room_for_errno(&mut self) {
        const ROOM: usize = 50;
        if self.length > LINE_LENGTH_MAX - ROOM {
            self.cut(LINE_LENGTH_MAX - ROOM);
            self.put_bytes(b"...");
        }
    }

    fn put_context(&mut self, context: &Context<'_>) {
        let Context { action, client, server, request, upstream, host, referrer, note } = *context;

        if let Some(action) = action {
            self.put(format_args!(" while {action}"));
        }
        for (name, value) in [("client", client), ("server", server)] {
            if let Some(value) = value {
                self.put(format_args!(", {name}: {value}"));
            }
        }
        let quoted =
            [("request", request), ("upstream", upstream), ("host", host), ("referrer", referrer)];
        for (name, value) in quoted {
            if let Some(value) = value {
                self.put(format_args!(", {name}: \"{}\"", escape(value)));
            }
        }
        if let Some(note) = note {
            self.put_last(note);
        }
    }

    /// Puts this at the end, in place of what leaves no room for it.
    fn put_last(&mut self, text: fmt::Arguments<'_>) {
        let mut last = Line::new();
        last.put(text);
        let room = (LINE_LENGTH_MAX - 1).saturating_sub(last.length);
        if self.length > room {
            self.cut(room);
        }
        self.put_bytes(last.bytes.get(..last.length).unwrap_or_default());
    }

    /// Ends the line at this length, or before the escape that would be cut in two: what is left of it
    /// would read as something else.
    fn cut(&mut self, length: usize) {
        self.length = length;
        let text = self.bytes.get(..length).unwrap_or_default();
        let start = text.iter().rposition(|&byte| byte == b'\\').unwrap_or(length);
        if matches!(text.get(start..), Some([_] | [_, b'x'] | [_, b'x', _])) {
            self.length = start;
        }
    }

    /// The line with its line feed. More may still be put afterwards.
    pub fn finish(&mut self) -> &[u8] {
        if self.length >= LINE_LENGTH_MAX - 1 {
            self.cut(LINE_LENGTH_MAX - 1);
        }
        let end = self.length;
        if let Some(place) = self.bytes.get_mut(end) {
            *place = b'\n';
        }
        self.bytes.get(..=end).unwrap_or_default()
    }

    fn put(&mut self, arguments: fmt::Arguments<'_>) {
        // The only error is that the line is full.
        let _ = self.write_fmt(arguments);
    }

    #[expect(
        clippy::arithmetic_side_effects,
        reason = "length + room.len() is the length of a line"
    )]
    fn put_bytes(&mut self, bytes: &[u8]) {
        let room = self.bytes.get_mut(self.length..LINE_LENGTH_MAX - 1).unwrap_or_default();
        let taken = room.len().min(bytes.len());
        for (place, &byte) in room.iter_mut().zip(bytes) {
            *place = byte;
        }
        self.length += taken;
    }
}

/// The end of a line, ` while …, client: …`, put into words ahead of the message: for what outlives
/// the things it tells of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail(Box<[u8]>);

impl Tail {
    #[cfg(test)]
    pub fn sample() -> Self {
        Tail((*b" while x").into())
    }

    /// Cut where a line is.
    pub fn new(context: &Context<'_>) -> Self {
        let mut line = Line::new();
        line.put_context(context);
        Tail(line.bytes.get(..line.length).unwrap_or_default().into())
    }
}

/// Control characters become `\xHH` wherever they come from: a line is a line.
impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.as_bytes().chunk_by(|a, b| !a.is_ascii_control() && !b.is_ascii_control())
        {
            match piece {
                [control] if control.is_ascii_control() => self.put_bytes(&hex(*control)),
                printable => self.put_bytes(printable),
            }
        }
        if self.length < LINE_LENGTH_MAX - 1 { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Bytes from outside as the logs show them between quotes: controls, `"`, `\` and everything
/// beyond ASCII become `\xHH` (`escape=default` of `log_format`).
pub fn escape(bytes: &[u8]) -> Escaped<'_> {
    Escaped(bytes)
}

/// Displays what [`escape`] was given.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in self.0.chunk_by(|&a, &b| !is_escaped(a) && !is_escaped(b)) {
            match piece {
                [byte] if is_escaped(*byte) => {
                    hex(*byte).into_iter().try_for_each(|digit| f.write_char(char::from(digit)))?;
                }
                plain => f.write_str(std::str::from_utf8(plain).map_err(|_| fmt::Error)?)?,
            }
        }
        Ok(())
    }
}

fn is_escaped(byte: u8) -> bool {
    !(b' '..0x7f).contains(&byte) || matches!(byte, b'"' | b'\\')
}

#[expect(clippy::arithmetic_side_effects, reason = "a nibble is less than sixteen")]
fn hex(byte: u8) -> [u8; 4] {
    let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 };
    [b'\\', b'x', digit(byte >> 4), digit(byte & 15)]
}

/// A system error as the logs show it: `111: Connection refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The number behind an error; 0 for one that no system call made.
    pub fn of(error: &io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The standard library has strerror, but adds the number at the end.
        let text = io::Error::from_raw_os_error(self.0).to_string();
        let text = text.split(" (os error ").next().unwrap_or_default();
        write!(f, "{}: {text}", self.0)
    }
}

/// What is escaped stays within quotes and on its line, and nothing is lost.
#[allow(clippy::panic, clippy::arithmetic_side_effects, reason = "the property that is tested")]
pub fn fuzz_escape(data: &[u8]) {
    let text = escape(data).to_string();
    assert!(text.bytes().all(|byte| (b' '..0x7f).contains(&byte) && byte != b'"'));

    let mut restored = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if let (b'\\', Some((&[b'x', high, low], after))) = (byte, after.split_first_chunk()) {
            let digits = [char::from(high), char::from(low)].map(|digit| digit.to_digit(16));
            let [Some(high), Some(low)] = digits else { panic!("{text:?}") };
            restored.push((high * 16 + low) as u8);
            rest = after;
        } else {
            restored.push(byte);
            rest = after;
        }
    }
    assert_eq!(restored, data);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str, context: &Context<'_>) -> String {
        let mut line = Line::new();
        line.put_message(format_args!("{text}"), None, context);
        String::from_utf8(line.finish().to_vec()).unwrap()
    }

    #[test]
    fn strerror() {
        assert_eq!(Errno(111).to_string(), "111: Connection refused");
        assert_eq!(Errno(110).to_string(), "110: Connection timed out");
        assert_eq!(Errno(11).to_string(), "11: Resource temporarily unavailable");
        assert_eq!(Errno::of(&io::Error::from_raw_os_error(2)), Errno(2));
    }

    #[test]
    fn parts_that_are_not_known_are_left_out() {
        assert_eq!(message("text", &Context::default()), "text\n");
        let context = Context { client: Some("::1"), server: Some("0.0.0.0:80"), ..<_>::default() };
        assert_eq!(message("text", &context), "text, client: ::1, server: 0.0.0.0:80\n");
    }

    #[test]
    fn what_clients_send_cannot_forge_a_line() {
        let context = Context { request: Some(b"GET /\"\n\xc3\xa9\\ x"), ..<_>::default() };
        assert_eq!(
            message("sent \"a\r\nb\t\u{e9}\"", &context),
            "sent \"a\\x0D\\x0Ab\\x09\u{e9}\", request: \"GET /\\x22\\x0A\\xC3\\xA9\\x5C x\"\n"
        );
    }

    #[test]
    fn long_lines_are_cut() {
        let context = Context { request: Some(&[b'a'; 5000]), ..<_>::default() };
        let line = message("text", &context);
        assert_eq!(line.len(), LINE_LENGTH_MAX);
        assert!(line.ends_with("a\n"));
    }

    #[test]
    fn a_long_text_leaves_room_for_its_errno() {
        let line = |length| {
            let mut line = Line::new();
            let context = Context { client: Some("::1"), ..<_>::default() };
            line.put_message(format_args!("{}", "a".repeat(length)), Some(111), &context);
            String::from_utf8(line.finish().to_vec()).unwrap()
        };
        let (errno, context) = (" (111: Connection refused)", ", client: ::1\n");
        assert_eq!(line(1998), format!("{}{errno}{context}", "a".repeat(1998)));
        for length in [1999, 2047, 5000] {
            assert_eq!(line(length), format!("{}...{errno}{context}", "a".repeat(1998)));
        }
    }

    #[test]
    fn no_escape_is_cut_in_two() {
        for length in 0..4 {
            let before = "a".repeat(length);
            let mut line = Line::new();
            line.put_message(
                format_args!("{before}{}", "\x01".repeat(900)),
                Some(111),
                &<_>::default(),
            );
            let line = String::from_utf8(line.finish().to_vec()).unwrap();
            let (escapes, errno) = line[length..].split_once("...").unwrap();
            assert_eq!(escapes, "\\x01".repeat(escapes.len() / 4));
            assert_eq!(errno, " (111: Connection refused)\n");

            for note in [None, Some(format_args!("; note"))] {
                let request = [before.as_bytes(), &[1; 900]].concat();
                let context = Context { request: Some(&request), note, ..<_>::default() };
                let line = message("text", &context);
                let (_, escapes) = line.split_once(&format!("\"{before}")).unwrap();
                let escapes = escapes.trim_end().trim_end_matches("; note");
                assert_eq!(escapes, "\\x01".repeat(escapes.len() / 4));
            }
        }
    }

    #[test]
    fn a_note_is_there_however_long_the_line_is() {
        for length in [1, LINE_LENGTH_MAX - 30, LINE_LENGTH_MAX, 5000] {
            let request = vec![b'a'; length];
            let note = Some(format_args!(", note"));
            let context = Context { request: Some(&request), note, ..<_>::default() };
            let line = message("text", &context);
            assert!(line.len() <= LINE_LENGTH_MAX && line.ends_with(", note\n"), "{line}");
            assert_eq!(line.matches("note").count(), 1);
        }
        let long = "n".repeat(5000);
        let context = Context { note: Some(format_args!("{long}")), ..<_>::default() };
        assert_eq!(message("text", &context).len(), LINE_LENGTH_MAX);
    }

    #[test]
    fn a_tail_is_what_its_context_says() {
        let with_tail = |text: &str, errno, context: &Context<'_>| {
            let mut line = Line::new();
            line.put_message_with_tail(format_args!("{text}"), errno, &Tail::new(context));
            String::from_utf8(line.finish().to_vec()).unwrap()
        };
        let context = Context {
            action: Some("proxying upgraded connection"),
            client: Some("::1"),
            request: Some(b"GET /\"\n x"),
            ..<_>::default()
        };
        assert_eq!(
            with_tail("recv() failed", Some(104), &context),
            "recv() failed (104: Connection reset by peer) while proxying upgraded connection, \
             client: ::1, request: \"GET /\\x22\\x0A x\"\n"
        );
        let long = Context { request: Some(&[b'a'; 5000]), ..context };
        assert_eq!(with_tail("text", None, &long), message("text", &long));
    }

    proptest! {
        #[test]
        fn any_bytes_escape(data in vec(any::<u8>(), 0..200)) {
            fuzz_escape(&data);
        }

        #[test]
        fn any_text_is_one_line(text in ".{0,400}", repeat in 1_usize..9, errno in any::<i32>()) {
            let mut line = Line::new();
            line.put_startup_head(Level::Error);
            line.put_message(format_args!("{}", text.repeat(repeat)), Some(errno), &<_>::default());
            let line = line.finish();
            prop_assert!(line.len() <= LINE_LENGTH_MAX);
            prop_assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
        }
    }
}
