//! What is sent to an upstream: the request head of HTTP (proxy, sections 1 and 2) and the variables
//! block of uwsgi (uwsgi, section 3). Built once per request, whatever number of servers is tried.

mod http;
mod uwsgi;

use std::io::IoSlice;
use std::rc::Rc;

use smallvec::SmallVec;

pub use self::http::http;
pub use self::uwsgi::{Hint, Refused, fuzz_client_headers, uwsgi};
use crate::http::modules::proxy::ProxyPass;
use crate::http::request::Request;
use crate::http::tunnel::handshake::Asked;
use crate::http1::header::Known;
use crate::http1::{Span, framing};

/// A request head for an upstream: bytes made here, with long values of the client's head between
/// them. Reused from request to request.
#[derive(Debug, Default)]
pub struct Message {
    bytes: Vec<u8>,
    /// Where in `bytes` a part of the client's head goes, in order.
    inserts: SmallVec<[(usize, Span); 2]>,
    /// Where the URI stands in an HTTP head, for the log.
    uri: Span,
    /// The method sent is HEAD: no body will come.
    is_head: bool,
    /// The value of Upgrade, whether it is sent or kept back.
    upgrade: Vec<u8>,
    /// What that value asks for.
    asked: Asked,
    /// The bytes are a uwsgi packet.
    is_packet: bool,
    /// What had to be left out of that packet.
    oversized: Option<Oversized>,
    /// What an HTTP head tells of the body.
    told: Told,
    /// Bytes of a body that the configuration makes (`proxy_set_body`), behind the head.
    made_body: usize,
}

/// What a head tells of its body (RFC 9112 section 6), whoever wrote the lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Told {
    length: Option<u64>,
    chunked: bool,
    /// Something that cannot be told.
    unclear: bool,
}

impl Told {
    /// One more line of the head.
    fn read(&mut self, name: &[u8], value: &[u8]) {
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = framing::parse_content_length(value);
            self.unclear |= length.is_none() || self.length.is_some();
            self.length = length;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.unclear |= self.chunked || !framing::is_chunked(value);
            self.chunked = true;
        }
    }

    /// Whether it is true of a body of `length` bytes, in chunks or not.
    fn is_true_of(self, length: u64, in_chunks: bool) -> bool {
        let is_true = match (in_chunks, self.length) {
            (true, told) => self.chunked && told.is_none(),
            (false, told) => !self.chunked && told.unwrap_or(0) == length,
        };
        is_true && !self.unclear
    }
}

/// Variables too big for a packet's 16 bits of length: such a packet is measured, but never sent.
#[derive(Debug, Clone, Copy)]
struct Oversized {
    /// Bytes of the block that are not there.
    missing: usize,
    /// The largest of the variables: its key in `bytes`, and the length that its value has.
    key: Span,
    value_length: usize,
}

impl Message {
    /// Bytes that it holds, in use or not.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity().saturating_add(self.upgrade.capacity())
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.inserts.clear();
        self.uri = Span::default();
        self.is_head = false;
        self.upgrade.clear();
        self.asked = Asked::Nothing;
        self.is_packet = false;
        self.oversized = None;
        self.told = Told::default();
        self.made_body = 0;
    }

    /// Bytes of a body that comes with the head.
    pub fn made_body(&self) -> u64 {
        self.made_body as u64
    }

    /// Whether the head tells the truth of a body of `length` bytes, in chunks or not.
    pub fn tells_truly(&self, length: u64, in_chunks: bool) -> bool {
        self.told.is_true_of(length, in_chunks)
    }

    /// Whether what was asked for is a head alone.
    pub fn is_head(&self) -> bool {
        self.is_head
    }

    /// The Upgrade that was sent; empty when the server was not asked to switch protocols.
    pub fn upgrade(&self) -> &[u8] {
        match self.asked {
            Asked::WebSocket | Asked::Other => &self.upgrade,
            Asked::Nothing | Asked::Refused => b"",
        }
    }

    /// The Upgrade that was kept back.
    pub fn refused_upgrade(&self) -> Option<&[u8]> {
        (self.asked == Asked::Refused).then_some(&self.upgrade)
    }

    /// What the server was asked to become.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// The URI as sent; empty for uwsgi.
    pub fn uri(&self) -> &[u8] {
        self.uri.of(&self.bytes)
    }

    /// The head as it goes out: `client_head` is what the request's spans refer to.
    #[expect(
        clippy::indexing_slicing,
        reason = "inserts are told in order, each by the length that `bytes` then had"
    )]
    pub fn slices<'a>(&'a self, client_head: &'a [u8]) -> SmallVec<[IoSlice<'a>; 6]> {
        let mut slices = SmallVec::new();
        let mut from = 0;
        for &(at, span) in &self.inserts {
            slices.push(IoSlice::new(&self.bytes[from..at]));
            slices.push(IoSlice::new(span.of(client_head)));
            from = at;
        }
        slices.push(IoSlice::new(&self.bytes[from..]));
        slices
    }
}

/// Where a proxied request goes, as far as its head says so.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// `$proxy_host`
    pub host: &'a [u8],
    pub uri: DestinationUri<'a>,
}

/// The URI part of `proxy_pass`.
#[derive(Debug, Clone, Copy)]
pub enum DestinationUri<'a> {
    /// None: the client's own.
    Request,
    /// Stands for the location's name.
    Replaces(&'a [u8]),
    /// Out of variables: sent as it is.
    Whole(&'a [u8]),
}

/// Where an exchange of the current location has been set out for: what `$proxy_host` tells of.
#[derive(Debug, Default)]
pub enum SetOutFor {
    /// There was none.
    #[default]
    Nobody,
    /// Whoever the configuration names.
    Configured,
    /// What `*_pass` with variables has come to.
    Computed(Rc<ProxiedTo>),
}

/// What a `proxy_pass` with variables leads to, for one request.
#[derive(Debug, Default)]
pub struct ProxiedTo {
    /// `$proxy_host`
    pub host: String,
    /// `$proxy_port`
    pub port: String,
    pub uri: Vec<u8>,
}

impl<'a> From<&'a ProxiedTo> for Destination<'a> {
    fn from(to: &'a ProxiedTo) -> Self {
        let uri = match to.uri.as_slice() {
            b"" => DestinationUri::Request,
            uri => DestinationUri::Whole(uri),
        };
        Destination { host: to.host.as_bytes(), uri }
    }
}

impl<'a> From<&'a ProxyPass> for Destination<'a> {
    fn from(pass: &'a ProxyPass) -> Self {
        let uri = match &pass.uri {
            None => DestinationUri::Request,
            Some(uri) => DestinationUri::Replaces(uri.as_bytes()),
        };
        Destination { host: pass.host.as_bytes(), uri }
    }
}

/// How the body follows the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyForm {
    None,
    /// As it is: its length has been said.
    Plain,
    /// In chunks of our own making.
    Chunked,
}

/// The client's Upgrade lines, joined.
fn put_client_upgrade(r: &Request, out: &mut Vec<u8>) {
    for (n, field) in r.head.headers.find_all(Known::Upgrade).enumerate() {
        if n > 0 {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(r.text(field.value));
    }
}

/// Whether a sorted list of lower-case names has this one, whatever its case.
pub fn contains(names: &[Box<[u8]>], name: &[u8]) -> bool {
    names.iter().any(|known| known.len() == name.len() && known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_stand_between_the_bytes() {
        let message = Message {
            bytes: b"abcd".to_vec(),
            inserts: SmallVec::from_slice(&[(1, Span::new(0, 2)), (4, Span::new(2, 3))]),
            ..Message::default()
        };
        let joined: Vec<u8> = message.slices(b"XYZ").iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(joined, b"aXYbcdZ");
    }

    #[test]
    fn what_a_head_tells_of_its_body() {
        let told = |lines: &[(&str, &str)]| {
            let mut told = Told::default();
            for (name, value) in lines {
                told.read(name.as_bytes(), value.as_bytes());
            }
            told
        };
        let (length, coding) = ("Content-Length", "Transfer-Encoding");
        assert!(told(&[]).is_true_of(0, false));
        assert!(!told(&[]).is_true_of(5, false) && !told(&[]).is_true_of(5, true));
        assert!(told(&[(length, "5"), ("X-Y", "6")]).is_true_of(5, false));
        assert!(!told(&[(length, "5")]).is_true_of(4, false));
        assert!(told(&[("transfer-encoding", "Chunked")]).is_true_of(4, true));
        for lines in [
            &[(length, "5"), (length, "5")][..],
            &[(length, "5"), (coding, "chunked")],
            &[(length, "+5")],
            &[(coding, "chunked"), (coding, "chunked")],
            &[(coding, "gzip")],
        ] {
            assert!(!told(lines).is_true_of(5, false) && !told(lines).is_true_of(5, true));
        }
    }

    #[test]
    fn names_in_a_list() {
        let names: Vec<Box<[u8]>> = vec![b"host".as_slice().into(), b"te".as_slice().into()];
        assert!(contains(&names, b"Host") && !contains(&names, b"Hos"));
    }
}
