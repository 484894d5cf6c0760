//! The header that a balancer sends ahead of a connection's bytes: the PROXY protocol, versions 1
//! and 2 (haproxy.org, `proxy-protocol.txt`, sections 2.1 and 2.2), as nginx reads it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who is connected with whom at the other end of the balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub source: Endpoint,
    pub destination: Endpoint,
    /// Version 2: type, length and value after one another, as received.
    pub tlvs: Box<[u8]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// In version 1 as received.
    pub address: Box<str>,
    pub port: u16,
}

/// A header that was received whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// `None`: the connection is the balancer's own, or of a kind that has no such addresses.
    pub header: Option<Header>,
    /// Bytes of the header.
    pub len: usize,
}

/// Why there is no header, in nginx's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The line's bytes, which are [`Broken::line`], belong to the text.
    #[error("broken header")]
    Line,
    #[error("unknown PROXY protocol version: {0}")]
    Version(u8),
    #[error("header is too large")]
    TooLarge,
    /// Too short for the addresses of its family: nginx says nothing of it.
    #[error("header is too short")]
    TooShort,
}

impl Broken {
    /// What is quoted of the bytes received: up to the end of the line.
    pub fn line(bytes: &[u8]) -> &[u8] {
        bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or(bytes)
    }
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2, before the addresses.
const FIXED_LEN: usize = 16;

/// Reads the header from the bytes that came first. It has to be whole.
pub fn parse(bytes: &[u8]) -> Result<Received, Broken> {
    match bytes.split_first_chunk() {
        Some((fixed, rest)) if fixed.starts_with(SIGNATURE) => version2(*fixed, rest),
        _ => version1(bytes).ok_or(Broken::Line),
    }
}

/// The longest line of version 1, with its end.
const LINE_MAX: usize = 107;

/// `PROXY TCP4 1.2.3.4 5.6.7.8 1234 80\r\n`
fn version1(bytes: &[u8]) -> Option<Received> {
    let start = bytes.get(..LINE_MAX).unwrap_or(bytes);
    let end = memchr::memmem::find(start, b"\r\n")?;
    let len = end.saturating_add(2);
    let line = start.get(..end)?.strip_prefix(b"PROXY ")?;
    // Whatever more it says.
    if line.starts_with(b"UNKNOWN") {
        return Some(Received { header: None, len });
    }
    let mut fields = line.split(|byte| *byte == b' ');
    let is_address: fn(&str) -> bool = match fields.next()? {
        b"TCP4" => |text| text.parse::<Ipv4Addr>().is_ok(),
        b"TCP6" => |text| text.parse::<Ipv6Addr>().is_ok(),
        _ => return None,
    };
    let address = |field| std::str::from_utf8(field).ok().filter(|text| is_address(text));
    let source = address(fields.next()?)?.into();
    let destination = address(fields.next()?)?.into();
    let header = Header {
        source: Endpoint { address: source, port: port(fields.next()?)? },
        destination: Endpoint { address: destination, port: port(fields.next()?)? },
        tlvs: Box::default(),
    };
    fields.next().is_none().then_some(Received { header: Some(header), len })
}

/// Zeros may lead, as nginx lets them.
fn port(bytes: &[u8]) -> Option<u16> {
    let fits = bytes.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(bytes).ok().filter(|_| fits)?.parse().ok()
}

fn version2(fixed: [u8; FIXED_LEN], rest: &[u8]) -> Result<Received, Broken> {
    let [.., version_command, family_transport, high, low] = fixed;
    if version_command >> 4 != 2 {
        return Err(Broken::Version(version_command >> 4));
    }
    let body_len = usize::from(u16::from_be_bytes([high, low]));
    let Some(body) = rest.get(..body_len) else { return Err(Broken::TooLarge) };
    let has_addresses = version_command & 15 == 1 && family_transport & 15 == 1;
    let header = match family_transport >> 4 {
        1 if has_addresses => Some(addresses(body, |ip| Ipv4Addr::from(ip).into())?),
        2 if has_addresses => Some(addresses(body, |ip| Ipv6Addr::from(ip).into())?),
        _ => None,
    };
    Ok(Received { header, len: FIXED_LEN.saturating_add(body_len) })
}

/// Two addresses of `N` bytes and two ports, then TLVs.
fn addresses<const N: usize>(body: &[u8], ip: fn([u8; N]) -> IpAddr) -> Result<Header, Broken> {
    let (source, rest) = body.split_first_chunk().ok_or(Broken::TooShort)?;
    let (destination, rest) = rest.split_first_chunk().ok_or(Broken::TooShort)?;
    let (source_port, rest) = rest.split_first_chunk().ok_or(Broken::TooShort)?;
    let (destination_port, tlvs) = rest.split_first_chunk().ok_or(Broken::TooShort)?;
    let endpoint = |address: &[u8; N], port: &[u8; 2]| Endpoint {
        address: ip(*address).to_string().into(),
        port: u16::from_be_bytes(*port),
    };
    Ok(Header {
        source: endpoint(source, source_port),
        destination: endpoint(destination, destination_port),
        tlvs: tlvs.into(),
    })
}

/// What `$proxy_protocol_tlv_NAME` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tlv {
    /// By its type.
    Of(u32),
    /// By its type, inside the value of `ssl`.
    OfSsl(u32),
    /// The result of the certificate's verification, as a number.
    SslVerify,
    /// No name of a TLV.
    Unknown(Box<str>),
}

/// The list of TLVs breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("broken PROXY protocol TLV")]
pub struct BrokenTlv;

/// Section 2.2.5: the client's flags and the result of the verification come before the TLVs.
const SSL: u32 = 0x20;
const SSL_FIXED_LEN: usize = 5;

impl Tlv {
    /// `name`: what follows `$proxy_protocol_tlv_`, in lower case.
    pub fn named(name: &str) -> Tlv {
        let of_number =
            |text: &str| text.strip_prefix("0x").map(|hex| u32::from_str_radix(hex, 16));
        let (ssl, short) = match name.strip_prefix("ssl_") {
            Some(short) => (true, short),
            None => (false, name),
        };
        let kind = match (ssl, short) {
            (true, "verify") => return Tlv::SslVerify,
            (true, "version") => 0x21,
            (true, "cn") => 0x22,
            (true, "cipher") => 0x23,
            (true, "sig_alg") => 0x24,
            (true, "key_alg") => 0x25,
            (false, "alpn") => 0x01,
            (false, "authority") => 0x02,
            (false, "unique_id") => 0x05,
            (false, "ssl") => SSL,
            (false, "netns") => 0x30,
            _ => match of_number(short) {
                Some(Ok(kind)) => kind,
                _ => return Tlv::Unknown(name.into()),
            },
        };
        if ssl { Tlv::OfSsl(kind) } else { Tlv::Of(kind) }
    }
}

impl Header {
    /// The value of a TLV; for [`Tlv::SslVerify`] its four bytes.
    pub fn tlv(&self, tlv: &Tlv) -> Result<Option<&[u8]>, BrokenTlv> {
        match tlv {
            Tlv::Of(kind) => find(&self.tlvs, *kind),
            Tlv::OfSsl(_) | Tlv::SslVerify => {
                let Some(ssl) = find(&self.tlvs, SSL)? else { return Ok(None) };
                let (fixed, inner) = ssl.split_at_checked(SSL_FIXED_LEN).ok_or(BrokenTlv)?;
                match tlv {
                    Tlv::OfSsl(kind) => find(inner, *kind),
                    _ => Ok(fixed.get(1..)),
                }
            }
            Tlv::Unknown(_) => Ok(None),
        }
    }
}

/// The first TLV of a type.
fn find(mut tlvs: &[u8], kind: u32) -> Result<Option<&[u8]>, BrokenTlv> {
    while !tlvs.is_empty() {
        let (&[found, high, low], rest) = tlvs.split_first_chunk().ok_or(BrokenTlv)?;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest.split_at_checked(len).ok_or(BrokenTlv)?;
        if u32::from(found) == kind {
            return Ok(Some(value));
        }
        tlvs = rest;
    }
    Ok(None)
}

/// Any bytes: a header ends inside them, what follows it changes nothing, and no look at its TLVs
/// goes wrong.
#[expect(clippy::indexing_slicing, reason = "the property that is tested")]
pub fn fuzz_proxy_header(data: &[u8]) {
    let parsed = parse(data);
    let Ok(received) = &parsed else { return };
    assert!(received.len <= data.len());
    assert_eq!(parse(&data[..received.len]).as_ref(), Ok(received));
    if let Some(header) = &received.header {
        assert!(header.source.address.is_ascii() && header.destination.address.is_ascii());
        for tlv in [Tlv::Of(1), Tlv::Of(SSL), Tlv::OfSsl(0x21), Tlv::SslVerify] {
            if let Ok(Some(value)) = header.tlv(&tlv) {
                assert!(value.len() <= header.tlvs.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(bytes: &[u8]) -> String {
        match parse(bytes) {
            Ok(Received { header: None, len }) => format!("none, {len}"),
            Ok(Received { header: Some(header), len }) => {
                let Header { source: s, destination: d, tlvs } = header;
                let tlvs = tlvs.len();
                format!("{} {} {} {} {tlvs}, {len}", s.address, s.port, d.address, d.port)
            }
            Err(broken) => broken.to_string(),
        }
    }

    #[test]
    fn version_1() {
        for (line, expected) in [
            ("PROXY TCP4 1.2.3.4 5.6.7.8 123 80\r\nGET", "1.2.3.4 123 5.6.7.8 80 0, 35"),
            ("PROXY TCP6 ::1 2001:DB8::1 0 65535\r\n", "::1 0 2001:DB8::1 65535 0, 36"),
            ("PROXY TCP6 ::ffff:1.2.3.4 :: 1 2\r\n", "::ffff:1.2.3.4 1 :: 2 0, 34"),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 0080 00\r\n", "1.2.3.4 80 5.6.7.8 0 0, 36"),
            ("PROXY UNKNOWN\r\n", "none, 15"),
            ("PROXY UNKNOWN any thing\r\nGET", "none, 25"),
            ("PROXY UNKNOWNx\r\n", "none, 16"),
        ] {
            assert_eq!(shown(line.as_bytes()), expected, "{line}");
        }
        for line in [
            "",
            "GET / HTTP/1.1\r\n",
            "PROXY",
            "PROXY \r\n",
            "PROXY UNKNOWN",
            "PROXY UNKNOWN\n",
            "proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 \r\n",
            "PROXY TCP4 1.2.3.g 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 +2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r \n",
            "PROXY TCP4 :: . 1 2\r\n",
            "PROXY TCP4   1 2\r\n",
            "PROXY TCP6 . . 1 2\r\n",
            "PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
            "PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 ::1 ::2 1 2\r\n",
            "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP6 1::2::3 ::1 1 2\r\n",
        ] {
            assert_eq!(shown(line.as_bytes()), "broken header", "{line}");
        }
        let line = |len: usize| format!("PROXY UNKNOWN{}\r\nGET", "x".repeat(len - 15));
        assert_eq!(shown(line(107).as_bytes()), "none, 107");
        assert_eq!(shown(line(108).as_bytes()), "broken header");
        let address = ["ffff"; 8].join(":");
        let longest = format!("PROXY TCP6 {address} {address} 65535 65535\r\n");
        assert!(shown(longest.as_bytes()).starts_with(&address), "{longest}");
        assert_eq!(Broken::line(b"GET / HTTP/1.1\r\nHost"), b"GET / HTTP/1.1");
        assert_eq!(Broken::line(b"no end"), b"no end");
    }

    fn v2(version_command: u8, family_transport: u8, body: &[u8]) -> Vec<u8> {
        let len = (body.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[version_command, family_transport], &len, body].concat()
    }

    const ADDRESSES: &[u8; 12] = b"\x01\x02\x03\x04\x05\x06\x07\x08\x01\x00\x00\x50";

    #[test]
    fn version_2() {
        let shown = |version_command, family_transport, body: &[u8]| {
            shown(&[&v2(version_command, family_transport, body)[..], b"GET"].concat())
        };
        assert_eq!(shown(0x21, 0x11, ADDRESSES), "1.2.3.4 256 5.6.7.8 80 0, 28");
        let six = [&[0; 15][..], &[1], &[0; 15], &[2], &[0, 9, 0, 8], &[0x30, 0, 0]].concat();
        assert_eq!(shown(0x21, 0x21, &six), "::1 9 ::2 8 3, 55");
        // Not PROXY, not a stream, not an address family with ports.
        assert_eq!(shown(0x20, 0x11, ADDRESSES), "none, 28");
        assert_eq!(shown(0x21, 0x12, ADDRESSES), "none, 28");
        assert_eq!(shown(0x21, 0x01, ADDRESSES), "none, 28");
        assert_eq!(shown(0x21, 0x31, ADDRESSES), "none, 28");
        assert_eq!(shown(0x21, 0x11, &ADDRESSES[1..]), "header is too short");
        assert_eq!(shown(0x11, 0x11, ADDRESSES), "unknown PROXY protocol version: 1");
        let whole = v2(0x21, 0x11, ADDRESSES);
        assert_eq!(parse(&whole[..27]), Err(Broken::TooLarge));
        assert_eq!(parse(&whole[..15]), Err(Broken::Line));
    }

    #[test]
    fn tlvs() {
        let tlvs =
            b"\x02\x00\x03a.b\x05\x00\x00\x20\x00\x0f\x01\x00\x00\x01\x02\x21\x00\x07TLSv1.3";
        let received = parse(&v2(0x21, 0x11, &[&ADDRESSES[..], tlvs].concat())).unwrap();
        let header = received.header.unwrap();
        let tlv = |name: &str| header.tlv(&Tlv::named(name)).map(|v| v.map(<[u8]>::to_vec));
        assert_eq!(tlv("authority"), Ok(Some(b"a.b".to_vec())));
        assert_eq!(tlv("0x02"), Ok(Some(b"a.b".to_vec())));
        assert_eq!(tlv("unique_id"), Ok(Some(Vec::new())));
        assert_eq!(tlv("ssl_version"), Ok(Some(b"TLSv1.3".to_vec())));
        assert_eq!(tlv("ssl_0x21"), Ok(Some(b"TLSv1.3".to_vec())));
        assert_eq!(tlv("ssl_verify"), Ok(Some(vec![0, 0, 1, 2])));
        assert_eq!(tlv("ssl_cn"), Ok(None));
        assert_eq!(tlv("alpn"), Ok(None));
        assert_eq!(tlv("0x1ff"), Ok(None));
        assert_eq!(Tlv::named("x"), Tlv::Unknown("x".into()));
        assert_eq!(Tlv::named("0xg"), Tlv::Unknown("0xg".into()));
        for cut in [1, 2, 5] {
            let header = Header { tlvs: tlvs[..cut].into(), ..header.clone() };
            assert_eq!(header.tlv(&Tlv::Of(9)), Err(BrokenTlv), "{cut}");
        }
        let short = Header { tlvs: b"\x20\x00\x04\x01\x00\x00\x00"[..].into(), ..header };
        assert_eq!(short.tlv(&Tlv::SslVerify), Err(BrokenTlv));
    }

    proptest! {
        #[test]
        fn any_line(text in "(PROXY ){0,1}(TCP4 |TCP6 |UNKNOWN){0,1}[0-9a-f:. ]{0,30}(\r\n){0,1}x{0,3}") {
            fuzz_proxy_header(text.as_bytes());
        }

        #[test]
        fn any_bytes(
            version_command in prop::sample::select(vec![0x21_u8, 0x20, 0x11]),
            family_transport in prop::sample::select(vec![0x11_u8, 0x21, 0x12, 0]),
            body in prop::collection::vec(any::<u8>(), 0..60),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = v2(version_command, family_transport, &body);
            fuzz_proxy_header(&bytes);
            fuzz_proxy_header(&bytes[..cut.index(bytes.len())]);
        }
    }
}
