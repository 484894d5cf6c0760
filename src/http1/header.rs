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

/// `NAMES[BY_LENGTH[n] .. BY_LENGTH[n + 1]]` once sorted by length.
#[expect(clippy::indexing_slicing, reason = "done by the compiler, which would say so")]
const SORTED: ([(&str, Known); NAMES.len()], [usize; LENGTHS + 1]) = {
    let mut sorted = [("", Known::Other); NAMES.len()];
    let mut starts = [0; LENGTHS + 1];
    let (mut filled, mut length) = (0, 0);
    while length < LENGTHS {
        starts[length] = filled;
        let mut at = 0;
        while at < NAMES.len() {
            if NAMES[at].0.len() == length {
                sorted[filled] = NAMES[at];
                filled += 1;
            }
            at += 1;
        }
        length += 1;
    }
    starts[LENGTHS] = filled;
    assert!(filled == NAMES.len(), "LENGTHS covers every name");
    assert!(NAMES.len() < 64, "a set of names is a u64");
    (sorted, starts)
};

static NAMES_BY_LENGTH: [(&str, Known); NAMES.len()] = SORTED.0;
static LENGTH_STARTS: [usize; LENGTHS + 1] = SORTED.1;

impl Known {
    /// The known name that `name` is, in any case.
    pub fn of(name: &[u8]) -> Known {
        let Some(&[start, end, ..]) = LENGTH_STARTS.get(name.len()..) else {
            return Known::Other;
        };
        let candidates = NAMES_BY_LENGTH.get(start..end).unwrap_or_default();
        candidates
            .iter()
            .find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name))
            .map_or(Known::Other, |&(_, known)| known)
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
    use super::*;

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
