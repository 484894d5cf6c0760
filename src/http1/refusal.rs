//! Why a head is not accepted: one table for requests, one for upstream responses.
//!
//! The texts are those of nginx's error log, without the action (` while reading client request
//! line`, ` while reading response header from upstream`) that the log adds by itself.

use std::fmt::{self, Write};

/// Bytes of a peer that a log line quotes. Printed so that they cannot forge or break a line:
/// controls and what is not UTF-8 as `\xHH`.
#[derive(Clone, PartialEq, Eq)]
pub struct Quoted(Box<[u8]>);

impl Quoted {
    /// A log line has 2048 bytes; nginx leaves 300 of them to what surrounds the quotation.
    pub const LEN_MAX: usize = 2048 - 300;

    /// Longer text is cut to [`Self::LEN_MAX`] bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Quoted(bytes.get(..Self::LEN_MAX).unwrap_or(bytes).into())
    }

    /// `name: value`
    pub fn line(name: &[u8], value: &[u8]) -> Self {
        Quoted::new(&[name, b": ", value].concat())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for char in chunk.valid().chars() {
                if char.is_ascii_control() {
                    write!(f, "\\x{:02X}", u32::from(char))?;
                } else {
                    f.write_char(char)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Why a request head is refused. The connection is closed after the answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    // The request line (RFC 9112 section 3).
    /// Not `[A-Z_-]+`.
    #[error("client sent invalid method")]
    InvalidMethod,
    /// RFC 9112 section 3.2: not origin-form or absolute-form (for CONNECT authority-form), a byte
    /// that cannot be in it, or no protocol after it; and a path that cannot be normalised.
    #[error("client sent invalid request")]
    InvalidRequest,
    /// RFC 9112 section 2.3: a major version above 1.
    #[error("client sent invalid version")]
    VersionNotSupported,
    /// A line without a version knows GET only.
    #[error("client sent invalid method in HTTP/0.9 request")]
    InvalidHttp09Method,
    /// RFC 9110 section 4.2.1: the authority of an absolute-form target.
    #[error("client sent invalid host in request line")]
    InvalidTargetHost,
    /// RFC 9112 section 3: longer than one of `large_client_header_buffers`.
    #[error("client sent too long URI")]
    UriTooLong,

    // The header lines (RFC 9112 section 5).
    /// RFC 9112 section 5.1 and 5.2: a control, a space before the colon, a folded line, a lone CR.
    #[error("client sent invalid header line: \"{seen}\\x{offender:02x}...\"")]
    InvalidHeaderLine { seen: Quoted, offender: u8 },
    /// RFC 6585 section 5: longer than one of `large_client_header_buffers`.
    #[error("client sent too long header line: \"{line}...\"")]
    HeaderLineTooLong { line: Quoted },
    /// RFC 6585 section 5: all `large_client_header_buffers` are used.
    #[error("client sent too large request")]
    HeaderTooLarge,
    /// More than `max_headers`.
    #[error("client sent too many header lines")]
    TooManyHeaders,
    /// RFC 9112 section 3.2.
    #[error("client sent duplicate host header: \"{line}\", previous value: \"{previous}\"")]
    DuplicateHost { line: Quoted, previous: Quoted },
    /// RFC 9112 section 3.2.
    #[error("client sent invalid host header")]
    InvalidHost,
    /// RFC 9110 section 5.3: a field that is not a list came twice.
    #[error("client sent duplicate header line: \"{line}\", previous value: \"{previous}\"")]
    DuplicateHeader { line: Quoted, previous: Quoted },

    // The whole head.
    /// RFC 9112 section 3.2.
    #[error("client sent HTTP/1.1 request without \"Host\" header")]
    MissingHost,
    /// RFC 9112 section 6.3 rule 5.
    #[error("client sent invalid \"Content-Length\" header")]
    InvalidContentLength,
    /// RFC 9112 section 6.1: smuggling.
    #[error("client sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time")]
    ContentLengthAndTransferEncoding,
    /// RFC 9112 section 6.1.
    #[error("client sent HTTP/1.0 request with \"Transfer-Encoding\" header")]
    TransferEncodingInHttp10,
    /// RFC 9112 section 6.1.
    #[error("client sent unknown \"Transfer-Encoding\": \"{value}\"")]
    UnknownTransferEncoding { value: Quoted },
    #[error("client sent TRACE method")]
    Trace,
    #[error("client sent CONNECT method")]
    Connect,
}

impl Refusal {
    /// Whether it is the request line that is refused; otherwise it is a header, or all of them.
    pub fn is_of_request_line(&self) -> bool {
        matches!(
            self,
            Refusal::InvalidMethod
                | Refusal::InvalidRequest
                | Refusal::VersionNotSupported
                | Refusal::InvalidHttp09Method
                | Refusal::InvalidTargetHost
                | Refusal::UriTooLong
        )
    }

    /// The status to answer with. 494 is nginx's own: `error_page` sees it, the wire says 400.
    pub fn status(&self) -> u16 {
        self.rule().status
    }

    /// What is broken, and what that leads to.
    pub fn rule(&self) -> Rule {
        let (status, section) = match self {
            Refusal::InvalidMethod => (400, "RFC 9110 section 9.1"),
            Refusal::VersionNotSupported => (505, "RFC 9112 section 2.3"),
            Refusal::InvalidHttp09Method => (400, "RFC 9112 section 3"),
            Refusal::InvalidTargetHost => (400, "RFC 9110 section 4.2.1"),
            Refusal::UriTooLong => (414, "RFC 9112 section 3"),
            Refusal::InvalidHeaderLine { .. } => (400, "RFC 9112 section 5"),
            Refusal::HeaderLineTooLong { .. }
            | Refusal::HeaderTooLarge
            | Refusal::TooManyHeaders => (494, "RFC 6585 section 5"),
            Refusal::InvalidRequest
            | Refusal::DuplicateHost { .. }
            | Refusal::InvalidHost
            | Refusal::MissingHost => (400, "RFC 9112 section 3.2"),
            Refusal::DuplicateHeader { .. } => (400, "RFC 9110 section 5.3"),
            Refusal::InvalidContentLength => (400, "RFC 9112 section 6.3"),
            Refusal::ContentLengthAndTransferEncoding | Refusal::TransferEncodingInHttp10 => {
                (400, "RFC 9112 section 6.1")
            }
            Refusal::UnknownTransferEncoding { .. } => (501, "RFC 9112 section 6.1"),
            Refusal::Trace => (405, "RFC 9110 section 9.3.8"),
            Refusal::Connect => (405, "RFC 9110 section 9.3.6"),
        };
        Rule { status, section }
    }
}

/// What a refusal goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub status: u16,
    /// Where it is written.
    pub section: &'static str,
}

/// For the error log of a response of HTTP/0.9 too, which is passed on.
pub const NO_VALID_HEADER: &str = "upstream sent no valid HTTP/1.0 header";

/// Why the head of an upstream's response is refused: 502, and the next upstream may be tried
/// (`proxy_next_upstream invalid_header`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseRefusal {
    /// RFC 9112 section 4: it begins like a status line, and is none.
    #[error("{}", NO_VALID_HEADER)]
    InvalidStatusLine,
    /// RFC 9112 section 5.1 and 5.2.
    #[error("upstream sent invalid header: \"{seen}\\x{offender:02x}...\"")]
    InvalidHeader { seen: Quoted, offender: u8 },
    /// Longer than `proxy_buffer_size` (`uwsgi_buffer_size`), status line included.
    #[error("upstream sent too big header")]
    HeaderTooBig,
    /// RFC 9112 section 6.3: a second `Content-Length` or `Transfer-Encoding`, even an equal one.
    #[error("upstream sent duplicate header line: \"{line}\", previous value: \"{previous}\"")]
    DuplicateHeader { line: Quoted, previous: Quoted },
    /// RFC 9112 section 6.3 rule 5.
    #[error("upstream sent invalid \"Content-Length\" header: \"{line}\"")]
    InvalidContentLength { line: Quoted },
    /// RFC 9112 section 6.1.
    #[error("upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time")]
    ContentLengthAndTransferEncoding,
    /// RFC 9112 section 6.1.
    #[error("upstream sent unknown \"Transfer-Encoding\": \"{value}\"")]
    UnknownTransferEncoding { value: Quoted },
    /// RFC 3875 section 6.3.3: `Status` does not start with three digits.
    #[error("upstream sent invalid status \"{value}\"")]
    InvalidStatus { value: Quoted },
}

impl ResponseRefusal {
    pub fn status(&self) -> u16 {
        self.rule().status
    }

    /// What is broken; it always leads to a 502, and to the end of the connection.
    pub fn rule(&self) -> Rule {
        let section = match self {
            ResponseRefusal::InvalidStatusLine => "RFC 9112 section 4",
            ResponseRefusal::InvalidHeader { .. } => "RFC 9112 section 5",
            ResponseRefusal::HeaderTooBig => "RFC 9110 section 5.4",
            ResponseRefusal::DuplicateHeader { .. }
            | ResponseRefusal::InvalidContentLength { .. } => "RFC 9112 section 6.3",
            ResponseRefusal::ContentLengthAndTransferEncoding
            | ResponseRefusal::UnknownTransferEncoding { .. } => "RFC 9112 section 6.1",
            ResponseRefusal::InvalidStatus { .. } => "RFC 3875 section 6.3.3",
        };
        Rule { status: 502, section }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let refusal = Refusal::InvalidHeaderLine { seen: Quoted::new(b"Foo"), offender: b' ' };
        assert_eq!(refusal.to_string(), "client sent invalid header line: \"Foo\\x20...\"");
        assert_eq!(refusal.status(), 400);
        assert_eq!(refusal.rule().section, "RFC 9112 section 5");

        let refusal = ResponseRefusal::DuplicateHeader {
            line: Quoted::line(b"Content-Length", b"2"),
            previous: Quoted::line(b"Content-Length", b"1"),
        };
        assert_eq!(
            refusal.to_string(),
            "upstream sent duplicate header line: \"Content-Length: 2\", \
             previous value: \"Content-Length: 1\""
        );
        assert_eq!(refusal.status(), 502);
    }

    #[test]
    fn quotations_are_harmless() {
        assert_eq!(Quoted::new(b"a\x1b[1m\xff\xc3\xa9\n").to_string(), "a\\x1B[1m\\xFFé\\x0A");
        assert_eq!(Quoted::new(&[b'x'; 5000]).as_bytes().len(), Quoted::LEN_MAX);
    }
}
