//! Header fields of one message: where they lie, and which of them a proxy must understand.

use std::slice;

use super::Span;

/// Defines the enum of known names, and the table from name to variant, from one list.
macro_rules! known {
    ($($variant:ident $name:literal,)*) => {
        /// A header name that some rule of the proxy is about.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Known {
            /// Any other name.
            #[default]
            Other,
            $($variant,)*
        }

        /// Every known name, lower case.
        const NAMES: &[(&str, Known)] = &[$(($name, Known::$variant),)*];
    };
}

known! {
    Host "host",
    Connection "connection",
    ContentLength "content-length",
    ContentType "content-type",
    TransferEncoding "transfer-encoding",
    Expect "expect",
    Upgrade "upgrade",
    KeepAlive "keep-alive",
    ProxyConnection "proxy-connection",
    Te "te",
    Trailer "trailer",
    Cookie "cookie",
    Authorization "authorization",
    ProxyAuthorization "proxy-authorization",
    Range "range",
    IfRange "if-range",
    IfModifiedSince "if-modified-since",
    IfUnmodifiedSince "if-unmodified-since",
    IfMatch "if-match",
    IfNoneMatch "if-none-match",
    UserAgent "user-agent",
    Referer "referer",
    XForwardedFor "x-forwarded-for",
    Server "server",
    Date "date",
    Location "location",
    LastModified "last-modified",
    Etag "etag",
    SetCookie "set-cookie",
    Refresh "refresh",
    Status "status",
    Expires "expires",
    CacheControl "cache-control",
    Vary "vary",
    AcceptRanges "accept-ranges",
    ContentRange "content-range",
    ContentDisposition "content-disposition",
    WwwAuthenticate "www-authenticate",
    Link "link",
    XAccelRedirect "x-accel-redirect",
    XAccelExpires "x-accel-expires",
    XAccelBuffering "x-accel-buffering",
    XAccelLimitRate "x-accel-limit-rate",
    XAccelCharset "x-accel-charset",
    XPad "x-pad",
}

/// One more than the longest known name.
const LENGTHS: usize = 20;

/// A name with zeros behind it: compared without asking how long it is.
type Padded = [u8; 24];

/// A known name, as [`Known::of`] compares it.
#[derive(Clone, Copy)]
struct Name {
    padded: Padded,
    /// The bit that tells upper from lower case, where there is a letter.
    case: Padded,
    known: Known,
}

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "done by the compiler, which would say so"
)]
const fn name_of(&(name, known): &(&str, Known)) -> Name {
    let (mut padded, mut case) = ([0; _], [0; _]);
    let mut at = 0;
    while at < name.len() {
        padded[at] = name.as_bytes()[at];
        if padded[at].is_ascii_alphabetic() {
            case[at] = 0x20;
        }
        at += 1;
    }
    Name { padded, case, known }
}

/// The names by their length: those of `n` bytes are `.0[.1[n] .. .1[n + 1]]`.
#[expect(clippy::indexing_slicing, reason = "done by the compiler, which would say so")]
static BY_LENGTH: ([Name; NAMES.len()], [usize; LENGTHS + 1]) = {
    let mut sorted = [name_of(&NAMES[0]); NAMES.len()];
    let mut starts = [0; LENGTHS + 1];
    let (mut filled, mut length) = (0, 0);
    while length < LENGTHS {
        starts[length] = filled;
        let mut at = 0;
        while at < NAMES.len() {
            if NAMES[at].0.len() == length {
                sorted[filled] = name_of(&NAMES[at]);
                filled += 1;
            }
            at += 1;
        }
        length += 1;
    }
    starts[LENGTHS] = filled;
    assert!(filled == NAMES.len(), "LENGTHS covers every name");
    assert!(LENGTHS <= size_of::<Padded>(), "a name fits");
    assert!(NAMES.len() < 64, "a set of names is a u64");
    (sorted, starts)
};

impl Known {
    /// The known name that `name` is, in any case.
    pub fn of(name: &[u8]) -> Known {
        let (names, starts) = &BY_LENGTH;
        let Some(&[start, end, ..]) = starts.get(name.len()..) else { return Known::Other };
        let mut padded = Padded::default();
        if let Some(place) = padded.get_mut(..name.len()) {
            place.copy_from_slice(name);
        }
        let is_sought = |known: &&Name| {
            let bytes = padded.iter().zip(&known.padded).zip(&known.case);
            bytes.fold(0, |differs, ((a, b), case)| differs | ((a ^ b) & !case)) == 0
        };
        let candidates = names.get(start..end).unwrap_or_default();
        candidates.iter().find(is_sought).map_or(Known::Other, |name| name.known)
    }

    /// This name's place in a set of names.
    const fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// One header line, as offsets into the buffer it was read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// As sent, without the colon.
    pub name: Span,
    /// Without leading and trailing spaces; tabs are part of it.
    pub value: Span,
    pub known: Known,
}

/// The header lines of one message in their order; cleared and used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    fields: Vec<Field>,
    /// The names that occur at least once: most look-ups are for what is not there.
    present: u64,
}

impl Headers {
    pub fn clear(&mut self) {
        self.fields.clear();
        self.present = 0;
    }

    pub fn push(&mut self, field: Field) {
        self.present |= field.known.bit();
        self.fields.push(field);
    }

    pub fn iter(&self) -> slice::Iter<'_, Field> {
        self.fields.iter()
    }

    pub fn as_slice(&self) -> &[Field] {
        &self.fields
    }

    pub fn len(&self) -> usize {
        self.fields.len()
    }

    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    pub fn contains(&self, known: Known) -> bool {
        self.present & known.bit() != 0
    }

    /// The first line of that name.
    pub fn find(&self, known: Known) -> Option<Field> {
        self.find_all(known).next()
    }

    pub fn find_all(&self, known: Known) -> impl Iterator<Item = Field> {
        let fields = if self.contains(known) { self.fields.as_slice() } else { &[] };
        fields.iter().copied().filter(move |field| field.known == known)
    }

    /// The lines that `$http_NAME` means: `variable_name` is lower case with `_` for `-`.
    pub fn find_name(&self, buf: &[u8], variable_name: &[u8]) -> impl Iterator<Item = Field> {
        self.fields.iter().copied().filter(move |field| {
            let name = field.name.of(buf);
            name.len() == variable_name.len()
                && name.iter().zip(variable_name).all(|(&byte, &wanted)| match wanted {
                    b'_' => byte == b'-' || byte == b'_',
                    _ => byte.to_ascii_lowercase() == wanted,
                })
        })
    }
}

impl<'a> IntoIterator for &'a Headers {
    type Item = &'a Field;
    type IntoIter = slice::Iter<'a, Field>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_known_if_it_is_the_same_but_for_case(
            name in "[!-~\\r ]{0,24}",
            of in 0..NAMES.len(),
            changes in prop::collection::vec((0_usize..24, any::<u8>()), 0..3),
        ) {
            let mut near = NAMES[of].0.as_bytes().to_vec();
            for (at, bits) in changes {
                if let Some(byte) = near.get_mut(at) {
                    *byte ^= bits & 0xa0;
                }
            }
            for name in [name.into_bytes(), near] {
                let same = |(known, _): &&(&str, Known)| known.as_bytes().eq_ignore_ascii_case(&name);
                let expected = NAMES.iter().find(same).map_or(Known::Other, |&(_, known)| known);
                prop_assert_eq!(Known::of(&name), expected);
            }
        }
    }

    #[test]
    fn every_name_is_known_in_any_case() {
        for &(name, known) in NAMES {
            assert_eq!(Known::of(name.as_bytes()), known);
            assert_eq!(Known::of(name.to_ascii_uppercase().as_bytes()), known);
            assert_eq!(name, name.to_ascii_lowercase());
        }
        for other in ["", "x", "hosts", "content_length", "a-name-longer-than-any-that-is-known"] {
            assert_eq!(Known::of(other.as_bytes()), Known::Other, "{other}");
        }
    }

    #[test]
    fn finding() {
        let buf = b"Host|a|X-Id|1|x_id|2|TE|gzip";
        let field = |name: (usize, usize), value: (usize, usize)| Field {
            name: Span::new(name.0, name.1),
            value: Span::new(value.0, value.1),
            known: Known::of(&buf[name.0..name.1]),
        };
        let mut headers = Headers::default();
        headers.push(field((0, 4), (5, 6)));
        headers.push(field((7, 11), (12, 13)));
        headers.push(field((14, 18), (19, 20)));
        headers.push(field((21, 23), (24, 28)));

        let values = |name: &[u8]| -> Vec<&[u8]> {
            headers.find_name(buf, name).map(|field| field.value.of(buf)).collect()
        };
        assert_eq!(values(b"x_id"), [b"1", b"2"]);
        assert_eq!(values(b"host"), [b"a"]);
        assert!(values(b"x_i").is_empty());
        assert_eq!(headers.find(Known::Te).map(|field| field.value.of(buf)), Some(&b"gzip"[..]));
        assert_eq!(headers.find(Known::Cookie), None);
        assert_eq!(headers.find_all(Known::Other).count(), 2);

        headers.clear();
        assert!(headers.is_empty() && headers.find(Known::Te).is_none());
    }
}
