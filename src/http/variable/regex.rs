//! Regular expressions of the configuration, as PCRE reads them, and what a match leaves.

use std::fmt::Write;
use std::str::Chars;
use std::sync::Arc;

use fancy_regex::{BytesMode, CompileError, ParseError, RegexBuilder};

use super::VariableSlot;
use crate::config::diagnostic::{Fault, Outcome, fault};

/// A regular expression of the configuration, with the slots its named groups fill.
#[derive(Debug)]
pub struct Regex {
    /// As written, for the log.
    pub pattern: Box<str>,
    pub compiled: fancy_regex::Regex,
    /// Group number and slot of each named group.
    pub named: Vec<(usize, VariableSlot)>,
}
/// The value behind one regex match: subject text and where each group lies in it.
#[derive(Debug, Default, Clone)]
pub struct Captures {
    pub subject: Vec<u8>,
    pub groups: smallvec::SmallVec<[Option<(u32, u32)>; 10]>,
}

/// A match that was given up for its cost: nobody knows what it would have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GaveUp;

/// Ways that a match may try in vain before it is given up: some milliseconds' worth. It is the shard
/// that waits.
const TRIES_MAX: usize = 100_000;

impl Captures {
    /// Forgets the match, and keeps the memory.
    pub fn clear(&mut self) {
        self.subject.clear();
        self.groups.clear();
    }

    pub fn group(&self, n: usize) -> Option<&[u8]> {
        let (start, end) = (*self.groups.get(n)?)?;
        self.subject.get(start as usize..end as usize)
    }
}

pub type SharedRegex = Arc<Regex>;

impl Regex {
    /// Compiles a pattern as PCRE without UTF reads it: over bytes, with ASCII classes.
    ///
    /// Named groups are not bound to slots yet: [`Names::regex`] does that.
    pub fn compile(pattern: &str, caseless: bool) -> Outcome<Regex> {
        // A character outside ASCII is its bytes, in a class too.
        let mut bytes = String::with_capacity(pattern.len());
        for c in pattern.chars() {
            if c.is_ascii() {
                bytes.push(c);
            } else {
                let mut utf8 = [0; 4];
                for byte in c.encode_utf8(&mut utf8).bytes() {
                    _ = write!(bytes, "\\x{byte:02x}");
                }
            }
        }
        let build = |pattern: &str| {
            RegexBuilder::new(pattern)
                .bytes_mode(BytesMode::Ascii)
                .backtrack_limit(TRIES_MAX)
                .case_insensitive(caseless)
                .build()
        };
        // As written too, for what an error says.
        let compiled = match as_pcre_reads(&bytes).map(|bytes| build(&bytes)) {
            Some(Ok(compiled)) => compiled,
            _ => build(&bytes).map_err(|error| Fault::new(compile_failed(pattern, &error)))?,
        };
        for name in compiled.capture_names().flatten() {
            check_group_name(pattern, name)?;
        }
        Ok(Regex { pattern: pattern.into(), compiled, named: Vec::new() })
    }

    /// Whether the subject matches; if so, `captures` holds the subject and its groups.
    pub fn matches(&self, subject: &[u8], captures: &mut Captures) -> Result<bool, GaveUp> {
        let found = match self.compiled.captures(subject) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(false),
            Err(_) => return Err(GaveUp),
        };
        captures.subject.clear();
        captures.subject.extend_from_slice(subject);
        captures.groups.clear();
        captures.groups.extend(
            found.iter().map(|group| group.map(|group| (group.start() as u32, group.end() as u32))),
        );
        Ok(true)
    }
}

/// The pattern with what PCRE means by `$`, the end, or before a line feed that is the end; by `\h`, white
/// space; and by what stands in a class. `None`: it is the same, or has comments, which hold anything.
fn as_pcre_reads(pattern: &str) -> Option<String> {
    if pattern.contains("(?x") {
        return None;
    }
    // The pattern changes by itself what `$` means.
    let has_lines = pattern.contains("(?m");
    let mut out = String::with_capacity(pattern.len().saturating_add(8));
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => put_escape(&mut chars, &mut out),
            '[' => put_class(&mut chars, &mut out),
            '$' if !has_lines => out.push_str("(?:\\n?\\z)"),
            _ => out.push(c),
        }
    }
    (out != pattern).then_some(out)
}

/// What follows a `\`.
fn put_escape(chars: &mut Chars<'_>, out: &mut String) {
    match chars.next() {
        Some('h') => out.push_str("[\\t\\x20\\xa0]"),
        Some('H') => out.push_str("[^\\t\\x20\\xa0]"),
        escaped => out.extend(['\\'].into_iter().chain(escaped)),
    }
}

/// What follows the `[` of a class. There is none within another, no `&&`, `~~` or `--` either: what would
/// make one is escaped, and so is each `-` that makes no range.
fn put_class(chars: &mut Chars<'_>, out: &mut String) {
    out.push('[');
    if let Some(rest) = chars.as_str().strip_prefix('^') {
        *chars = rest.chars();
        out.push('^');
    }
    // A `]` that comes first does not close.
    let mut is_first = true;
    // What may begin a range stands before; a range has just begun.
    let (mut begins, mut is_range) = (false, false);
    while let Some(c) = chars.next() {
        let rest = chars.as_str();
        let mut ends = is_range;
        is_range = c == '-' && begins && !rest.starts_with(']');
        let posix = if c == '[' { posix_name(rest) } else { None };
        match (c, posix) {
            (']', _) if !is_first => return out.push(c),
            ('-', _) if is_range => out.push(c),
            (_, Some((name, rest))) => {
                *chars = rest.chars();
                out.extend(["[", name, ":]"]);
                ends = true;
            }
            ('\\', _) => {
                // A whole kind of characters begins no range.
                ends |= rest.starts_with(['d', 'D', 'w', 'W', 's', 'S', 'h', 'H', 'p', 'P']);
                put_escape(chars, out);
            }
            ('[' | ']' | '-' | '&' | '~', _) => out.extend(['\\', c]),
            _ => out.push(c),
        }
        is_first = false;
        begins = !is_range && !ends;
    }
}

/// `:alpha` and what is behind `:]`.
fn posix_name(rest: &str) -> Option<(&str, &str)> {
    let (name, rest) = rest.split_once(":]")?;
    let letters = name.strip_prefix(':')?.trim_start_matches('^');
    letters.bytes().all(|byte| byte.is_ascii_lowercase()).then_some((name, rest))
}

/// `pcre2_compile() failed: missing closing parenthesis in "("`
fn compile_failed(pattern: &str, error: &fancy_regex::Error) -> String {
    use fancy_regex::Error;
    let (text, at) = match error {
        Error::ParseError(at, error) => {
            let text = match error {
                ParseError::UnclosedOpenParen => return closing_parenthesis(pattern),
                ParseError::InvalidRepeat | ParseError::TargetNotRepeatable => {
                    "quantifier does not follow a repeatable item".to_owned()
                }
                ParseError::TrailingBackslash => "\\ at end of pattern".to_owned(),
                ParseError::InvalidClass => "missing terminating ] for character class".to_owned(),
                ParseError::InvalidGroupName => "subpattern name expected".to_owned(),
                ParseError::InvalidBackref => "reference to non-existent subpattern".to_owned(),
                ParseError::GeneralParseError(_) if has_stray_closing(pattern) => {
                    "unmatched closing parenthesis".to_owned()
                }
                other => lower_first(&other.to_string()),
            };
            (text, Some(*at))
        }
        Error::CompileError(error) => match &**error {
            CompileError::LookBehindNotConst => {
                ("lookbehind assertion is not fixed length".to_owned(), None)
            }
            other => (lower_first(&other.to_string()), None),
        },
        other => (lower_first(&other.to_string()), None),
    };
    // Offsets are those of the escaped pattern: the same as long as the pattern is ASCII.
    match at.filter(|_| pattern.is_ascii()).and_then(|at| pattern.get(at..)) {
        Some(rest) if !rest.is_empty() => {
            format!("pcre2_compile() failed: {text} in \"{pattern}\" at \"{rest}\"")
        }
        _ => format!("pcre2_compile() failed: {text} in \"{pattern}\""),
    }
}

/// Names of groups are those of PCRE: letters, digits and `_`, no digit first.
fn check_group_name(pattern: &str, name: &str) -> Outcome {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let (text, at) = match name.bytes().position(|byte| !is_name(byte)) {
        _ if name.starts_with(|first: char| first.is_ascii_digit()) => {
            ("subpattern name must start with a non-digit", 0)
        }
        Some(at) => ("syntax error in subpattern name (missing terminator?)", at),
        None => return Ok(()),
    };
    let written = ["(?<", "(?P<"].map(|open| (open.len(), pattern.find(&format!("{open}{name}>"))));
    let found = written.into_iter().find_map(|(open, start)| Some(start?.saturating_add(open)));
    let rest = found.and_then(|start| pattern.get(start.saturating_add(at)..)).unwrap_or(name);
    fault!("pcre2_compile() failed: {text} in \"{pattern}\" at \"{rest}\"")
}

fn closing_parenthesis(pattern: &str) -> String {
    format!("pcre2_compile() failed: missing closing parenthesis in \"{pattern}\"")
}

/// Whether a `)` closes nothing, outside of escapes and classes.
fn has_stray_closing(pattern: &str) -> bool {
    let mut depth = 0_usize;
    let mut in_class = false;
    let mut bytes = pattern.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'[' => in_class = true,
            b']' => in_class = false,
            b'(' if !in_class => depth = depth.saturating_add(1),
            b')' if !in_class => match depth.checked_sub(1) {
                Some(outer) => depth = outer,
                None => return true,
            },
            _ => {}
        }
    }
    false
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regexes_run_on_bytes() {
        let found = |pattern, caseless, subject: &[u8]| {
            let mut captures = Captures::default();
            let regex = Regex::compile(pattern, caseless).unwrap();
            let matched = regex.matches(subject, &mut captures).unwrap();
            matched.then(|| captures.group(0).unwrap().to_vec())
        };
        assert_eq!(found("^/a.c$", false, b"/a\xffc"), Some(b"/a\xffc".to_vec()));
        assert_eq!(found("é", false, "/é".as_bytes()), Some("é".as_bytes().to_vec()));
        assert_eq!(found("[é]$", false, "/é".as_bytes()), Some(b"\xa9".to_vec()));
        assert_eq!(found("\\w+", false, "é_1".as_bytes()), Some(b"_1".to_vec()));
        assert_eq!(found("[^/]+", false, b"/\xc3"), Some(b"\xc3".to_vec()));
        assert_eq!(found("B", true, b"abc"), Some(b"b".to_vec()));
        assert_eq!(found("a(?!b)", false, b"abac\xff"), Some(b"a".to_vec()));
        assert_eq!(found("(a)\\1\\xff", false, b"aa\xff"), Some(b"aa\xff".to_vec()));
        assert_eq!(found("(x+x+)+y", false, &[b'x'; 60]), None);
        assert_eq!(found("^/a$", false, b"/a\n"), Some(b"/a\n".to_vec()));
        assert_eq!(found("^/a$", false, b"/a\n\n"), None);
        assert_eq!(found("^/a\\$[]$]", false, b"/a$$"), Some(b"/a$$".to_vec()));
        assert_eq!(found("a$|b", false, b"b"), Some(b"b".to_vec()));
    }

    #[test]
    fn classes_are_those_of_pcre() {
        for (pattern, held, others) in [
            ("[[]", "[", "a]"),
            ("[^[]", "a]", "["),
            ("[a[b]", "ab[", "]"),
            ("[a&&b]", "a&b", "c"),
            ("[a~~b]", "a~b", "c"),
            ("[+--]", "+,-", "*.a"),
            ("[a-z--A]", "az-.A", "B,+"),
            ("[a-z-9]", "az-9", "A0"),
            ("[-a]", "-a", "b"),
            ("[a-]", "-a", "b"),
            ("[^-a]", "b", "-a"),
            ("[]a]", "]a", "b"),
            ("[^]a]", "b", "]a"),
            ("[[:alpha:]_]", "a_", "0^:["),
            ("[[:^digit:]]", "a", "0"),
            ("[a:]", "a:", "["),
            ("[[:a]", "[:a", "b]"),
            ("[\\]&]", "]&", "\\"),
            ("[\\--\\/]", "-./", ",0"),
            ("\\h", " \t", "a0\n"),
            ("[\\h]", " \t", "ah"),
            ("[\\w-.]", "a9-.", ",/"),
            ("[\\d-z]", "9-z", "ay"),
            ("[[:digit:]-z]", "9-z", "ay"),
            ("[\\H]", "ah", " \t"),
        ] {
            let regex = Regex::compile(&format!("^{pattern}$"), false).unwrap();
            let holds = |c: char| {
                regex.matches(c.to_string().as_bytes(), &mut Captures::default()).unwrap()
            };
            assert!(held.chars().all(holds), "{pattern}");
            assert!(!others.chars().any(holds), "{pattern}");
        }
        let regex = Regex::compile("^[[a]b]$", false).unwrap();
        assert!(regex.matches(b"[b]", &mut Captures::default()).unwrap());
        assert!(Regex::compile("[[a", false).is_err());
    }

    #[test]
    fn what_costs_too_much_is_given_up() {
        let matches = |pattern, subject: &[u8]| {
            Regex::compile(pattern, false).unwrap().matches(subject, &mut Captures::default())
        };
        let expensive = "^/(?=a)(a|aa)+(?=$)|evil";
        let long = [b"/", &[b'a'; 60][..], b"b/evil"].concat();
        assert_eq!(matches(expensive, &long), Err(GaveUp));
        assert_eq!(matches(expensive, b"/aab/evil"), Ok(true));
        assert_eq!(matches(expensive, b"/aab"), Ok(false));
        // What looks around in a long text is no such thing.
        let long = [b"/", &[b'a'; 8000][..], b".php"].concat();
        assert_eq!(matches("^(?!.*\\.bak$).*\\.php(?=$)", &long), Ok(true));
        assert_eq!(matches("^/(?!tmp).*\\.html?(?=$)", &long), Ok(false));
    }

    #[test]
    fn broken_regexes_read_like_pcre() {
        for (pattern, error) in [
            ("(", "missing closing parenthesis in \"(\""),
            ("a(b", "missing closing parenthesis in \"a(b\""),
            ("[a", "missing terminating ] for character class in \"[a\""),
            ("a)", "unmatched closing parenthesis in \"a)\" at \")\""),
            ("a(?<1>b)", "subpattern name must start with a non-digit in \"a(?<1>b)\" at \"1>b)\""),
            (
                "(?P<a-b>c)",
                "syntax error in subpattern name (missing terminator?) in \"(?P<a-b>c)\" at \"-b>c)\"",
            ),
            ("*a", "quantifier does not follow a repeatable item in \"*a\" at \"*a\""),
        ] {
            let text = Regex::compile(pattern, false).map_err(|error| error.text).unwrap_err();
            assert_eq!(text, format!("pcre2_compile() failed: {error}"), "{pattern}");
        }
    }
}
