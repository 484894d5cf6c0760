//! `host[:port][/uri]`, `[v6]:port`, `unix:path`: how nginx reads an address in `listen`, `server`,
//! `proxy_pass` and `uwsgi_pass`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::ops::{Index, RangeFrom, RangeInclusive};
use std::path::PathBuf;

/// Where an address stands decides what it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `listen`: may be a port alone, `*`, a range of ports.
    Listen,
    /// A server of an upstream, `uwsgi_pass`.
    Peer,
    /// `proxy_pass`: a URI may follow.
    Url,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Every local IPv4 address.
    Wildcard,
    Ip(IpAddr),
    Name(String),
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: Host,
    /// The host as written, with the brackets of an IPv6 address; `unix:path` for a unix socket.
    pub host_text: String,
    /// `None`: not written.
    pub ports: Option<RangeInclusive<u16>>,
    /// What follows from `/` or `?` on; empty when nothing does.
    pub uri: String,
}

/// Why text is no address; `Display` is the first half of nginx's sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("no host")]
    NoHost,
    #[error("invalid host")]
    InvalidHost,
    #[error("invalid port")]
    InvalidPort,
    #[error("invalid port range")]
    InvalidPortRange,
    #[error("invalid IPv6 address")]
    InvalidIpv6,
    #[error("no path in the unix domain socket")]
    NoPath,
    #[error("too long path in the unix domain socket")]
    PathTooLong,
    #[error("host not found")]
    HostNotFound,
}

/// Room for a path in a `sockaddr_un`, the final zero included.
const UNIX_PATH_MAX: usize = 108;

impl Address {
    pub fn parse(text: &str, form: Form) -> Result<Address, AddressError> {
        let (text, uri) = match form {
            Form::Url => {
                let (address, uri) = split_url(text.as_bytes());
                let uri_start = text.len().saturating_sub(uri.len());
                (
                    text.get(..address.len()).unwrap_or_default(),
                    text.get(uri_start..).unwrap_or_default(),
                )
            }
            Form::Listen | Form::Peer => (text, ""),
        };
        let address = if is_unix(text.as_bytes()) {
            unix(text)
        } else if text.starts_with('[') {
            inet6(text, form)
        } else {
            inet(text, form)
        }?;
        Ok(Address { uri: uri.to_owned(), ..address })
    }

    /// The port, when one is written and it is no range.
    pub fn port(&self) -> Option<u16> {
        self.ports.as_ref().map(|ports| *ports.start())
    }

    /// The socket addresses the host has now, IPv4 first, at `port`. Names are asked for from the
    /// system, which may take long.
    pub fn resolve(&self, port: u16) -> Result<Vec<SocketAddr>, AddressError> {
        match &self.host {
            Host::Wildcard => Ok(vec![(Ipv4Addr::UNSPECIFIED, port).into()]),
            Host::Ip(ip) => Ok(vec![(*ip, port).into()]),
            Host::Unix(_) => Ok(Vec::new()),
            Host::Name(name) => {
                let found = (name.as_str(), port).to_socket_addrs();
                let found: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
                let mut addresses: Vec<SocketAddr> = Vec::new();
                for address in found.iter().filter(|a| a.is_ipv4()).chain(&found) {
                    if !addresses.contains(address) {
                        addresses.push(*address);
                    }
                }
                if addresses.is_empty() { Err(AddressError::HostNotFound) } else { Ok(addresses) }
            }
        }
    }
}

const UNIX: &str = "unix:";

fn is_unix(text: &[u8]) -> bool {
    strip_scheme(text, UNIX).is_some()
}

/// What follows a URL's scheme, in text or in any bytes. Schemes are told in any case.
pub fn strip_scheme<'a, T>(url: &'a T, scheme: &str) -> Option<&'a T>
where
    T: AsRef<[u8]> + Index<RangeFrom<usize>, Output = T> + ?Sized,
{
    let start = url.as_ref().get(..scheme.len())?;
    // Text is cut behind ASCII, so between characters.
    start.eq_ignore_ascii_case(scheme.as_bytes()).then(|| &url[scheme.len()..])
}

/// Cuts what follows a URL's scheme into address and URI, which may be any bytes.
pub fn split_url(url: &[u8]) -> (&[u8], &[u8]) {
    let is_unix = is_unix(url);
    let (from, uri_starts): (usize, &[u8]) = match url {
        _ if is_unix => (UNIX.len(), b":"),
        // An IPv6 address may be followed by a URI.
        [b'[', ..] => (memchr::memchr(b']', url).unwrap_or(url.len()), b"/?"),
        _ => (0, b"/?"),
    };
    let behind = url.get(from..).unwrap_or_default();
    let length = behind.iter().position(|byte| uri_starts.contains(byte));
    let at = length.map_or(url.len(), |length| from.saturating_add(length));
    let (address, uri) = url.split_at_checked(at).unwrap_or((url, b""));
    // The colon behind a path is not the URI's.
    let uri = if is_unix { uri.strip_prefix(b":").unwrap_or(uri) } else { uri };
    (address, uri)
}

fn unix(text: &str) -> Result<Address, AddressError> {
    let path = text.get(UNIX.len()..).unwrap_or_default();
    if path.is_empty() {
        return Err(AddressError::NoPath);
    }
    if path.len() >= UNIX_PATH_MAX {
        return Err(AddressError::PathTooLong);
    }
    Ok(Address {
        host: Host::Unix(path.into()),
        host_text: format!("unix:{path}"),
        ports: None,
        uri: String::new(),
    })
}

fn inet6(text: &str, form: Form) -> Result<Address, AddressError> {
    let close = text.find(']').ok_or(AddressError::InvalidHost)?;
    #[expect(clippy::arithmetic_side_effects, reason = "close < text.len()")]
    let (host_text, after) = text.split_at(close + 1);
    let ports = match after.strip_prefix(':') {
        Some(port) => Some(ports(port, form)?),
        None if after.is_empty() => None,
        None => return Err(AddressError::InvalidHost),
    };
    let ip = host_text.get(1..close).unwrap_or_default();
    if ip.is_empty() {
        return Err(AddressError::NoHost);
    }
    let ip: Ipv6Addr = ip.parse().map_err(|_| AddressError::InvalidIpv6)?;
    Ok(Address {
        host: Host::Ip(ip.into()),
        host_text: host_text.to_owned(),
        ports,
        uri: String::new(),
    })
}

/// An IPv4 address of a configuration, as nginx reads it: its numbers are decimal whatever zeros they begin
/// with, where the system's resolver takes them for octal, and one that is not there is zero.
pub fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut numbers = text.split('.');
    for octet in &mut octets {
        for digit in numbers.next()?.bytes() {
            let digit =
                char::from(digit).to_digit(10).and_then(|digit| u8::try_from(digit).ok())?;
            *octet = u8::checked_mul(*octet, 10)?.checked_add(digit)?;
        }
    }
    numbers.next().is_none().then_some(octets.into())
}

/// The same, or an IPv6 address without brackets.
pub fn ip(text: &str) -> Option<IpAddr> {
    ipv4(text).map(IpAddr::V4).or_else(|| text.parse().ok())
}

/// `1.2.3.4:55` or `[2001:db8::1]:55`
pub fn ip_and_port(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let ip = match host.strip_prefix('[') {
        Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?),
        None => IpAddr::V4(ipv4(host)?),
    };
    let port = super::value::number(port).and_then(|port| u16::try_from(port).ok())?;
    (port > 0).then_some(SocketAddr::new(ip, port))
}

fn inet(text: &str, form: Form) -> Result<Address, AddressError> {
    let first = text.find(['/', '?']).and_then(|at| text.as_bytes().get(at));
    if first == Some(&b'/') {
        // A query does not end a host where no URI may stand; it makes a name that is not found.
        return Err(AddressError::InvalidHost);
    }
    let (host_text, ports) = match text.split_once(':') {
        Some((host, port)) => (host, Some(ports(port, form)?)),
        None if form == Form::Listen && text.bytes().all(|b| b.is_ascii_digit() || b == b'-') => {
            ("*", Some(ports(text, form)?))
        }
        None => (text, None),
    };
    let host = match host_text {
        "" => return Err(AddressError::NoHost),
        "*" if form == Form::Listen => Host::Wildcard,
        name => match ipv4(name) {
            Some(ip) => Host::Ip(ip.into()),
            None => Host::Name(name.to_owned()),
        },
    };
    Ok(Address { host, host_text: host_text.to_owned(), ports, uri: String::new() })
}

fn ports(text: &str, form: Form) -> Result<RangeInclusive<u16>, AddressError> {
    let port = |text: &str| match super::value::number(text).map(u16::try_from) {
        Some(Ok(port)) if port > 0 => Ok(port),
        _ => Err(AddressError::InvalidPort),
    };
    match text.split_once('-') {
        Some((first, last)) if form == Form::Listen => {
            let (first, last) = (port(first)?, port(last)?);
            if first > last { Err(AddressError::InvalidPortRange) } else { Ok(first..=last) }
        }
        _ => port(text).map(|port| port..=port),
    }
}

/// Any text: what is read can be written and read again.
#[allow(clippy::expect_used, reason = "the property that is tested")]
pub fn fuzz_address(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for form in [Form::Listen, Form::Peer, Form::Url] {
        let Ok(address) = Address::parse(&text, form) else { continue };
        assert!(form == Form::Url || address.uri.is_empty());
        if let (Some(port), false) = (address.port(), matches!(address.host, Host::Unix(_))) {
            let again = format!("{}:{port}{}", address.host_text, address.uri);
            let again = Address::parse(&again, form).expect("written as it was read");
            assert_eq!((again.host, again.uri), (address.host, address.uri));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str, form: Form) -> String {
        match Address::parse(text, form) {
            Ok(a) => format!("{:?} {:?} {}", a.host, a.ports, a.uri),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn schemes() {
        assert_eq!(strip_scheme("HTTP://a", "http://"), Some("a"));
        assert_eq!(strip_scheme("http://", "http://"), Some(""));
        assert_eq!(strip_scheme("http:/", "http://"), None);
        assert_eq!(strip_scheme("http:/\u{e9}a", "http://"), None);
        assert_eq!(strip_scheme(&b"uWSGI://\xff"[..], "uwsgi://"), Some(&b"\xff"[..]));
    }

    #[test]
    fn listen() {
        let listen = |text| shown(text, Form::Listen);
        assert_eq!(listen("8080"), "Wildcard Some(8080..=8080) ");
        assert_eq!(listen("*:80"), "Wildcard Some(80..=80) ");
        assert_eq!(listen("8070-8080"), "Wildcard Some(8070..=8080) ");
        assert_eq!(listen("127.0.0.1"), "Ip(127.0.0.1) None ");
        assert_eq!(listen("[::1]:8"), "Ip(::1) Some(8..=8) ");
        assert_eq!(listen("a.b:8"), "Name(\"a.b\") Some(8..=8) ");
        assert_eq!(listen("unix:/a:b"), "Unix(\"/a:b\") None ");
        for (text, error) in [
            ("0", "invalid port"),
            ("99999", "invalid port"),
            ("a:b:c", "invalid port"),
            ("[::1", "invalid host"),
            ("[::1]x", "invalid host"),
            ("[]:80", "no host"),
            ("[x]:80", "invalid IPv6 address"),
            ("unix:", "no path in the unix domain socket"),
            ("8080-8070", "invalid port range"),
            ("127.0.0.1:", "invalid port"),
            (":8080", "no host"),
            ("8080/x", "invalid host"),
        ] {
            assert_eq!(listen(text), error, "{text}");
        }
    }

    #[test]
    fn urls_and_peers() {
        let url = |text| shown(text, Form::Url);
        assert_eq!(url("a/b:c"), "Name(\"a\") None /b:c");
        assert_eq!(url("1.2.3.4:80?x"), "Ip(1.2.3.4) Some(80..=80) ?x");
        assert_eq!(url("[::1]/x"), "Ip(::1) None /x");
        assert_eq!(url("unix:/a:/b"), "Unix(\"/a\") None /b");
        assert_eq!(url("unix:/a?b"), "Unix(\"/a?b\") None ");
        assert_eq!(url("[::1"), "invalid host");
        assert_eq!(split_url(b"a:1/\xff?/"), (&b"a:1"[..], &b"/\xff?/"[..]));
        assert_eq!(url(""), "no host");
        assert_eq!(shown("1.2.3.4:80/x", Form::Peer), "invalid host");
        assert_eq!(shown("unix:/a:", Form::Peer), "Unix(\"/a:\") None ");
    }

    #[test]
    fn addresses_as_nginx_reads_them() {
        let shown = |text| ip(text).map(|ip| ip.to_string());
        for (text, expected) in [
            ("127.0.0.1", "127.0.0.1"),
            ("010.08.000000001.0255", "10.8.1.255"),
            ("1..3.", "1.0.3.0"),
            ("255.255.255.255", "255.255.255.255"),
            ("::1", "::1"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
        for text in
            ["", "1.2.3", "1.2.3.4.", "1.2.3.256", "0x1.2.3.4", "1.2.3.4 ", "+1.2.3.4", "[::1]"]
        {
            assert_eq!(shown(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_with_ports() {
        let shown = |text| ip_and_port(text).map(|address| address.to_string());
        assert_eq!(shown("01.2.3.4:080").as_deref(), Some("1.2.3.4:80"));
        assert_eq!(shown("[::1]:80").as_deref(), Some("[::1]:80"));
        for text in ["1.2.3.4", "1.2.3.4:", "1.2.3.4:0", "1.2.3.4:65536", "::1:80", "[1.2.3.4]:80"]
        {
            assert_eq!(shown(text), None, "{text}");
        }
    }

    #[test]
    fn literals_need_no_resolver() {
        let address = Address::parse("127.0.0.1:81", Form::Peer).unwrap();
        assert_eq!(address.resolve(81).unwrap(), ["127.0.0.1:81".parse().unwrap()]);
        let address = Address::parse("name.invalid", Form::Peer).unwrap();
        assert_eq!(address.resolve(80), Err(AddressError::HostNotFound));
    }

    proptest! {
        #[test]
        fn any_text(text in "[a1:/\\[\\]?*.-]{0,12}|(unix:){0,1}[a:/]{0,5}|[0-9.]{3,9}:[0-9]{1,6}") {
            fuzz_address(text.as_bytes());
        }
    }
}
