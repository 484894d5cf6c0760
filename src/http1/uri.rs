//! The path and arguments of a request: normalised to what locations are matched with, and escaped
//! again for whom they are sent to.

use super::Span;
use super::refusal::Refusal;

/// A path and arguments, where `$uri` and `$args` come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uri {
    /// The normalised path was written to `out`; otherwise it is a part of the raw input.
    pub changed: bool,
    /// Part of `out` if `changed`, else of the raw input. Begins with `/`.
    pub path: Span,
    /// Part of the raw input: what follows the `?`, never decoded, without the fragment.
    pub args: Option<Span>,
    /// The raw path holds `%XX`: what is sent on from the normalised path must be escaped again.
    pub has_escapes: bool,
    /// The raw path holds a `+`, which makes `rewrite` escape captures as `%XX` does.
    pub has_plus: bool,
}

/// Normalises the path of `raw` (a target from its path on): `%XX` decoded once, `.` and `..`
/// resolved, slashes merged if wished (`merge_slashes`), the fragment cut. RFC 3986 section 5.2.4 and
/// 6.2.2, where decoded dots and slashes count as such.
///
/// Refused: a `%` that begins no escape, `%00`, and `..` above the root.
pub fn normalise(raw: &[u8], merge_slashes: bool, out: &mut Vec<u8>) -> Result<Uri, Refusal> {
    out.clear();
    let (path, args) = split(raw);
    let raw_path = path.of(raw);

    let mut uri = Uri { path, args, ..Uri::default() };
    let mut plain = raw_path.first() == Some(&b'/');
    let mut previous = 0;
    for &byte in raw_path {
        match byte {
            b'%' => uri.has_escapes = true,
            b'+' => uri.has_plus = true,
            b'/' if previous == b'/' && merge_slashes => plain = false,
            // May be a dot segment.
            b'.' if previous == b'/' => plain = false,
            _ => {}
        }
        previous = byte;
    }
    if plain && !uri.has_escapes {
        return Ok(uri);
    }

    resolve(raw_path, merge_slashes, out)?;
    uri.changed = true;
    uri.path = Span::new(0, out.len());
    Ok(uri)
}

/// Where the path ends, and what are the arguments.
pub fn split(raw: &[u8]) -> (Span, Option<Span>) {
    let end = memchr::memchr(b'#', raw).unwrap_or(raw.len());
    let before_fragment = raw.get(..end).unwrap_or_default();
    match memchr::memchr(b'?', before_fragment) {
        #[expect(clippy::arithmetic_side_effects, reason = "mark < end")]
        Some(mark) => (Span::new(0, mark), Some(Span::new(mark + 1, end))),
        None => (Span::new(0, end), None),
    }
}

/// Decodes `path` into the empty `out` and resolves its segments on the way. `out` always begins
/// with `/`, and what follows its last `/` is the current segment.
fn resolve(path: &[u8], merge_slashes: bool, out: &mut Vec<u8>) -> Result<(), Refusal> {
    out.push(b'/');
    let mut rest = path.strip_prefix(b"/").unwrap_or(path);
    // An escaped first slash cannot be: a path begins with `/` or is empty.
    while let Some((byte, after)) = next_byte(rest)? {
        rest = after;
        let is_merged = |out: &[u8]| merge_slashes && out.ends_with(b"/");
        if byte != b'/' || !(close_segment(out)? || is_merged(out)) {
            out.push(byte);
        }
    }
    close_segment(out)?;
    Ok(())
}

/// The next byte of `text`, decoded, and what follows.
fn next_byte(text: &[u8]) -> Result<Option<(u8, &[u8])>, Refusal> {
    match *text {
        [] => Ok(None),
        [b'%', ref escape @ ..] => match hex_pair(escape) {
            Some((byte, after)) if byte != 0 => Ok(Some((byte, after))),
            _ => Err(Refusal::InvalidRequest),
        },
        [byte, ref after @ ..] => Ok(Some((byte, after))),
    }
}

/// Removes a `.` or `..` at the end of `path`, the latter with the segment before it. Whether there
/// was one; `path` then ends with `/`.
fn close_segment(path: &mut Vec<u8>) -> Result<bool, Refusal> {
    if path.ends_with(b"/.") {
        path.pop();
        return Ok(true);
    }
    let Some(parent) = path.strip_suffix(b"/..") else { return Ok(false) };
    let slash = memchr::memrchr(b'/', parent).ok_or(Refusal::InvalidRequest)?;
    #[expect(clippy::arithmetic_side_effects, reason = "slash < path.len()")]
    path.truncate(slash + 1);
    Ok(true)
}

/// Appends `path` with the bytes escaped that must not stand in a path: controls, space, `"#%<>?`,
/// ``\^`{|}``, DEL and up.
pub fn escape_uri(path: &[u8], out: &mut Vec<u8>) {
    escape(path, PATH, out);
}

/// Appends a capture or variable that becomes part of arguments: also `&`, `+` and `;` are escaped.
pub fn escape_args(value: &[u8], out: &mut Vec<u8>) {
    escape(value, ARGS, out);
}

/// What `rewrite` makes of a redirect's URL: up to the first `?`, also an escaped one, `%XX` is decoded
/// unless it stands for anything up to `%`, DEL or more. A `%` that begins no escape is
/// dropped.
pub fn unescape_redirect(url: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(url.len());
    let mut rest = url;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'?' {
            break;
        }
        rest = after;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let Some((decoded, behind)) = hex_pair(after) else { continue };
        match decoded {
            b'?' => {
                out.push(b'?');
                rest = behind;
                break;
            }
            b'&'..0x7f => out.push(decoded),
            _ => {
                out.push(b'%');
                out.extend_from_slice(after.get(..2).unwrap_or_default());
            }
        }
        rest = behind;
    }
    out.extend_from_slice(rest);
    out
}

/// Appends a URL that becomes part of a page: space, quotes, `%`, controls, DEL and up are escaped.
pub fn escape_refresh(url: &[u8], out: &mut Vec<u8>) {
    escape(url, REFRESH, out);
}

/// Appends `value` with every `%XX` decoded, once. A `%` that begins no escape is dropped, as nginx
/// does.
pub fn unescape(value: &[u8], out: &mut Vec<u8>) {
    let mut rest = value;
    while let Some(percent) = memchr::memchr(b'%', rest) {
        let (before, escape) = rest.split_at(percent);
        let escape = escape.get(1..).unwrap_or_default();
        out.extend_from_slice(before);
        rest = match hex_pair(escape) {
            Some((byte, after)) => {
                out.push(byte);
                after
            }
            None => escape,
        };
    }
    out.extend_from_slice(rest);
}

/// The byte that two hex digits at the start of `text` mean, and what follows them.
fn hex_pair(text: &[u8]) -> Option<(u8, &[u8])> {
    let [high, low, after @ ..] = text else { return None };
    Some((hex_digit(*high)? << 4 | hex_digit(*low)?, after))
}

pub(super) fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// Which bytes are escaped; bit `byte % 64` of word `byte / 64`.
type Set = [u64; 4];

const PATH: Set = set(b" \"#%<>?\\^`{|}");
const ARGS: Set = set(b" \"#%&+;<>?\\^`{|}");
const REFRESH: Set = set(b" \"%'");

/// These bytes, controls, DEL, and what is not ASCII.
#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "done by the compiler, which would say so"
)]
const fn set(bytes: &[u8]) -> Set {
    let mut set = [u32::MAX as u64, 1 << 63, u64::MAX, u64::MAX];
    let mut at = 0;
    while at < bytes.len() {
        set[bytes[at] as usize / 64] |= 1 << (bytes[at] % 64);
        at += 1;
    }
    set
}

fn is_in(set: Set, byte: u8) -> bool {
    set.get(usize::from(byte) / 64).is_some_and(|word| word >> (byte % 64) & 1 == 1)
}

fn escape(text: &[u8], set: Set, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble & 15)).copied().unwrap_or_default();

    let mut rest = text;
    while let Some(at) = rest.iter().position(|&byte| is_in(set, byte)) {
        let (plain, escaped) = rest.split_at(at);
        out.extend_from_slice(plain);
        if let Some((&byte, after)) = escaped.split_first() {
            out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte)]);
            rest = after;
        }
    }
    out.extend_from_slice(rest);
}

/// A normalised path holds nothing more to resolve, and comes back from being escaped and read.
#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "the property that is tested"
)]
pub fn fuzz_uri(data: &[u8]) {
    // A redirect's URL is made shorter or stays, and its args stay what they are.
    let url = unescape_redirect(data);
    assert!(url.len() <= data.len());
    if let Some(mark) = memchr::memchr(b'?', data)
        && !data.contains(&b'%')
    {
        assert!(url.ends_with(&data[mark..]));
    }

    // What the request line lets through.
    let starts_well = matches!(data.first(), None | Some(b'/' | b'?'));
    if !starts_well || data.iter().any(|&byte| byte <= b' ' || byte == 0x7f) {
        return;
    }
    for merge_slashes in [false, true] {
        let mut out = Vec::new();
        let Ok(uri) = normalise(data, merge_slashes, &mut out) else { continue };
        let path = if uri.changed { uri.path.of(&out) } else { uri.path.of(data) };
        assert_eq!(path.first(), Some(&b'/'));
        assert!(!path.contains(&0));
        assert!(!path.split(|&byte| byte == b'/').any(|segment| matches!(segment, b"." | b"..")));
        assert!(!merge_slashes || memchr::memmem::find(path, b"//").is_none());
        if let Some(args) = uri.args {
            assert!(!args.of(data).contains(&b'#'));
            assert_eq!(data.get(args.start as usize - 1), Some(&b'?'));
        }

        let mut escaped = Vec::new();
        escape_uri(path, &mut escaped);
        let mut again = Vec::new();
        let uri_again = normalise(&escaped, merge_slashes, &mut again);
        let path_again =
            uri_again.map(|uri| uri.path.of(if uri.changed { &again } else { &escaped }).to_vec());
        assert_eq!(path_again.as_deref(), Ok(path));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// path, args
    fn parts(raw: &str) -> (String, Option<&str>) {
        fuzz_uri(raw.as_bytes());
        let mut out = Vec::new();
        let uri = normalise(raw.as_bytes(), true, &mut out).expect(raw);
        let path = uri.path.of(if uri.changed { &out } else { raw.as_bytes() });
        let args = uri.args.map(|args| &raw[args.start as usize..args.end as usize]);
        (String::from_utf8_lossy(path).into_owned(), args)
    }

    fn path(raw: &str) -> String {
        parts(raw).0
    }

    #[test]
    fn paths() {
        for (raw, wanted) in [
            ("/", "/"),
            ("", "/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../", "/a/"),
            ("/./a/./", "/a/"),
            ("/...", "/..."),
            ("/..b/.c/d./e..", "/..b/.c/d./e.."),
            ("//a///b//", "/a/b/"),
            ("/a//../b", "/b"),
            ("/a%2fb", "/a/b"),
            ("/a%2F%2e%2E/b", "/b"),
            ("/a/%2e/b", "/a/b"),
            ("/%3f%23%25%20", "/?#% "),
            ("/%2541", "/%41"),
            ("/%01%0a%0D%7f", "/\x01\n\r\x7f"),
            ("/a+b;c\\d", "/a+b;c\\d"),
            ("/é%C3%a9", "/éé"),
        ] {
            assert_eq!(path(raw), wanted, "{raw}");
        }
    }

    #[test]
    fn slashes_that_are_not_merged_are_segments() {
        let keep = |raw: &str| {
            let mut out = Vec::new();
            let uri = normalise(raw.as_bytes(), false, &mut out).expect(raw);
            String::from_utf8(if uri.changed { out } else { raw.into() }).expect("text")
        };
        assert_eq!(keep("//a//b"), "//a//b");
        assert_eq!(keep("/a//../b"), "/a/b");
        assert_eq!(keep("/a/.//b"), "/a//b");
    }

    #[test]
    fn arguments_and_fragments() {
        assert_eq!(parts("/a?b?c"), ("/a".into(), Some("b?c")));
        assert_eq!(parts("/a?"), ("/a".into(), Some("")));
        assert_eq!(parts("/a#b?c"), ("/a".into(), None));
        assert_eq!(parts("/a?b#c"), ("/a".into(), Some("b")));
        assert_eq!(parts("?x=1"), ("/".into(), Some("x=1")));
        assert_eq!(parts("/%61?%61/../b"), ("/a".into(), Some("%61/../b")));
    }

    #[test]
    fn facts_about_the_raw_path() {
        let uri = |raw: &[u8]| normalise(raw, true, &mut Vec::new()).expect("valid");
        assert!(!uri(b"/a?%41+").has_escapes && !uri(b"/a?%41+").has_plus);
        assert!(uri(b"/%41").has_escapes && uri(b"/+").has_plus);
        assert!(!uri(b"/a.b/c#d").changed);
        assert!(uri(b"/.a").changed);
    }

    #[test]
    fn refused() {
        for raw in ["/..", "/../a", "/a/../..", "/%2e%2e", "/%", "/%4", "/%zz", "/%4g", "/a%00"] {
            let result = normalise(raw.as_bytes(), true, &mut Vec::new());
            assert_eq!(result, Err(Refusal::InvalidRequest), "{raw}");
        }
    }

    #[test]
    fn escaping() {
        let text: Vec<u8> = (0x1f..=0x80).collect();
        let escaped = |function: fn(&[u8], &mut Vec<u8>)| {
            let mut out = Vec::new();
            function(&text, &mut out);
            let mut back = Vec::new();
            unescape(&out, &mut back);
            assert_eq!(back, text);
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(
            escaped(escape_uri),
            "%1F%20!%22%23$%25&'()*+,-./0123456789:;%3C=%3E%3F@ABCDEFGHIJKLMNOPQRSTUVWXYZ[%5C]%5E_\
             %60abcdefghijklmnopqrstuvwxyz%7B%7C%7D~%7F%80"
        );
        assert_eq!(
            escaped(escape_args),
            "%1F%20!%22%23$%25%26'()*%2B,-./0123456789:%3B%3C=%3E%3F@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\
             %5C]%5E_%60abcdefghijklmnopqrstuvwxyz%7B%7C%7D~%7F%80"
        );
        assert_eq!(
            escaped(escape_refresh),
            "%1F%20!%22#$%25&%27()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_\
             `abcdefghijklmnopqrstuvwxyz{|}~%7F%80"
        );
    }

    #[test]
    fn a_redirect_is_decoded_up_to_its_args() {
        for (url, wanted) in [
            ("/to/a%20b", "/to/a%20b"),
            ("/to/a%26b%2B%7e", "/to/a&b+~"),
            ("/%22%23%24%25%21%7F%80%0a", "/%22%23%24%25%21%7F%80%0a"),
            ("/a%3Fb%26", "/a?b%26"),
            ("/a?b%26", "/a?b%26"),
            ("/%zz%4", "/zz4"),
            ("/%", "/"),
        ] {
            assert_eq!(unescape_redirect(url.as_bytes()), wanted.as_bytes(), "{url}");
        }
    }

    #[test]
    fn unescaping_takes_what_comes() {
        let unescaped = |text: &[u8]| {
            let mut out = Vec::new();
            unescape(text, &mut out);
            out
        };
        assert_eq!(unescaped(b"/a%20b%2541%00"), b"/a b%41\0");
        assert_eq!(unescaped(b"%zz%4"), b"zz4");
        assert_eq!(unescaped(b"%"), b"");
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_uri(&[b"/", data.as_slice()].concat());
        }

        #[test]
        fn likely_paths(raw in "(/|//|\\.|\\.\\.|%2e|%2F|%25|%41|%|a|b|\\?|#|\\+|é){0,12}") {
            fuzz_uri(format!("/{raw}").as_bytes());
        }
    }
}
