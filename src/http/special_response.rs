//! The built-in pages of errors and redirects, in static pieces: nothing is formatted per request.
//!
//! A page is its head (title and heading), the footer that names the server, and, for browsers that
//! replace short error pages with their own, six lines of padding. nginx's pages byte for byte but
//! for the name in the footer.

use super::modules::core::ServerTokens;
use super::user_agent::Browser;

/// The `Server` header and the name in the footer of a page.
pub const fn server_name(tokens: ServerTokens) -> &'static str {
    match tokens {
        ServerTokens::Off => "ringx",
        // There are no named builds: the version is all there is to say.
        ServerTokens::On | ServerTokens::Build => concat!("ringx/", env!("CARGO_PKG_VERSION")),
    }
}

/// The type of every page.
pub const CONTENT_TYPE: &str = "text/html";

/// A built-in page in the pieces it is sent in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Head, footer, padding; the last may be empty.
    pub pieces: [&'static [u8]; 3],
}

impl Page {
    /// Bytes in all, for `Content-Length`.
    pub fn length(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        for piece in self.pieces {
            out.extend_from_slice(piece);
        }
    }
}

macro_rules! footer {
    ($($name:expr),+) => {
        concat!("<hr><center>", $($name),+, "</center>\r\n</body>\r\n</html>\r\n")
    };
}

/// The page of a status, or none: then the response is empty and has no type.
///
/// `msie_padding` is what [`is_padded_for`] says of the request; pages of redirects have none
/// anyway.
pub fn page(code: u16, tokens: ServerTokens, msie_padding: bool) -> Option<Page> {
    let footer = match tokens {
        ServerTokens::Off => footer!("ringx"),
        ServerTokens::On | ServerTokens::Build => {
            footer!("ringx/", env!("CARGO_PKG_VERSION"))
        }
    };
    let padding = if msie_padding && code >= 400 { PADDING } else { "" };
    Some(Page { pieces: [head(code)?.as_bytes(), footer.as_bytes(), padding.as_bytes()] })
}

/// The status that is sent for a code: 494 to 497 are nginx's own kinds of 400.
pub const fn status(code: u16) -> u16 {
    match code {
        494..=497 => 400,
        _ => code,
    }
}

/// Whether `msie_padding on` applies to a request: those who are known to hide a short error page.
/// `minor_version` is that of HTTP/1; a request without a version (HTTP/0.9) gets no padding, say
/// so with `None`.
pub fn is_padded_for(user_agent: &[u8], minor_version: Option<u8>) -> bool {
    minor_version.is_some()
        && matches!(Browser::of(user_agent), Browser::Msie { .. } | Browser::Chrome)
}

/// Padding that brings a page over the 512 bytes below which it would be replaced.
const PADDING: &str = {
    macro_rules! line {
        () => {
            "<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n"
        };
    }
    concat!(line!(), line!(), line!(), line!(), line!(), line!())
};

/// Title, heading and, where a page has one, the line below the heading.
const fn head(code: u16) -> Option<&'static str> {
    macro_rules! head {
        ($title:literal) => {
            head!($title, $title, "")
        };
        ($title:literal, explained $text:literal) => {
            head!($title, "400 Bad Request", concat!("<center>", $text, "</center>\r\n"))
        };
        ($title:expr, $heading:literal, $line:expr) => {
            concat!(
                "<html>\r\n<head><title>",
                $title,
                "</title></head>\r\n<body>\r\n<center><h1>",
                $heading,
                "</h1></center>\r\n",
                $line
            )
        };
    }
    Some(match code {
        301 => head!("301 Moved Permanently"),
        302 => head!("302 Found"),
        303 => head!("303 See Other"),
        307 => head!("307 Temporary Redirect"),
        308 => head!("308 Permanent Redirect"),
        400 => head!("400 Bad Request"),
        401 => head!("401 Authorization Required"),
        402 => head!("402 Payment Required"),
        403 => head!("403 Forbidden"),
        404 | 498 => head!("404 Not Found"),
        405 => head!("405 Not Allowed"),
        406 => head!("406 Not Acceptable"),
        407 => head!("407 Proxy Authentication Required"),
        408 => head!("408 Request Time-out"),
        409 => head!("409 Conflict"),
        410 => head!("410 Gone"),
        411 => head!("411 Length Required"),
        412 => head!("412 Precondition Failed"),
        413 => head!("413 Request Entity Too Large"),
        414 => head!("414 Request-URI Too Large"),
        415 => head!("415 Unsupported Media Type"),
        416 => head!("416 Requested Range Not Satisfiable"),
        421 => head!("421 Misdirected Request"),
        429 => head!("429 Too Many Requests"),
        431 => head!("431 Request Header Fields Too Large"),
        494 => head!(
            "400 Request Header Or Cookie Too Large",
            explained "Request Header Or Cookie Too Large"
        ),
        495 => head!(
            "400 The SSL certificate error",
            explained "The SSL certificate error"
        ),
        496 => head!(
            "400 No required SSL certificate was sent",
            explained "No required SSL certificate was sent"
        ),
        497 => head!(
            "400 The plain HTTP request was sent to HTTPS port",
            explained "The plain HTTP request was sent to HTTPS port"
        ),
        500 => head!("500 Internal Server Error"),
        501 => head!("501 Not Implemented"),
        502 => head!("502 Bad Gateway"),
        503 => head!("503 Service Temporarily Unavailable"),
        504 => head!("504 Gateway Time-out"),
        505 => head!("505 HTTP Version Not Supported"),
        507 => head!("507 Insufficient Storage"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(code: u16, tokens: ServerTokens, msie_padding: bool) -> String {
        let page = page(code, tokens, msie_padding).unwrap();
        let mut out = Vec::new();
        page.put(&mut out);
        assert_eq!(out.len(), page.length());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn not_found() {
        assert_eq!(
            text(404, ServerTokens::Off, false),
            "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n\
             <center><h1>404 Not Found</h1></center>\r\n\
             <hr><center>ringx</center>\r\n</body>\r\n</html>\r\n"
        );
        assert!(text(404, ServerTokens::On, false).contains(concat!(
            "<center>ringx/",
            env!("CARGO_PKG_VERSION"),
            "</center>"
        )));
        assert_eq!(text(498, ServerTokens::On, false), text(404, ServerTokens::On, false));
    }

    #[test]
    fn as_long_as_nginx_has_them() {
        // nginx 1.31.5 sends 153 bytes; the name is as long as ours, the version may not be.
        let version = concat!("/", env!("CARGO_PKG_VERSION")).len();
        assert_eq!(text(404, ServerTokens::Off, false).len(), 146);
        assert_eq!(text(404, ServerTokens::On, false).len(), 146 + version);
        assert_eq!(text(404, ServerTokens::On, true).len(), 555 - 7 + version);
        assert_eq!(text(301, ServerTokens::On, true), text(301, ServerTokens::On, false));
    }

    #[test]
    fn explained_bad_requests() {
        let page = text(494, ServerTokens::Off, false);
        assert!(page.contains("<title>400 Request Header Or Cookie Too Large</title>"));
        assert!(page.contains(
            "<center><h1>400 Bad Request</h1></center>\r\n\
             <center>Request Header Or Cookie Too Large</center>\r\n<hr>"
        ));
        assert_eq!((status(494), status(497), status(498)), (400, 400, 498));
    }

    #[test]
    fn a_page_for_these_codes_and_no_others() {
        let have: Vec<u16> =
            (0..1000).filter(|&code| page(code, ServerTokens::On, false).is_some()).collect();
        let expected: Vec<u16> = [301, 302, 303, 307, 308]
            .into_iter()
            .chain(400..=416)
            .chain([421, 429, 431])
            .chain(494..=498)
            .chain(500..=505)
            .chain([507])
            .collect();
        assert_eq!(have, expected);
        for code in have.into_iter().filter(|code| !(494..=498).contains(code)) {
            assert!(text(code, ServerTokens::On, false).contains(&format!("<title>{code} ")));
        }
    }

    #[test]
    fn padding_for_those_who_hide_short_pages() {
        assert!(is_padded_for(b"Mozilla/4.0 (compatible; MSIE 6.0; Windows)", Some(1)));
        assert!(!is_padded_for(b"Mozilla/4.0 (compatible; MSIE 6.0; Opera 8)", Some(1)));
        assert!(is_padded_for(b"(KHTML, like Gecko) Chrome/120.0 Safari/537.36", Some(0)));
        assert!(!is_padded_for(b"Gecko/2009 Chrome/1.0", Some(1)));
        assert!(!is_padded_for(b"MSIE 6.0", None));
        assert!(!is_padded_for(b"curl/8.0", Some(1)));
    }
}
