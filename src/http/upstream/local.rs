//! The proxy's own end of a connection to a server: `*_bind`, `*_socket_rcvbuf`, `*_socket_sndbuf`
//! (proxy, section 15), and no pacing of what may become a tunnel on this host.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::config::address::{ip, ip_and_port};
use crate::error_log::{Level, escape};
use crate::http::connection::Connection;
use crate::http::modules::exchange::{Bind, BindAddress, Settings};
use crate::http::request::Request;
use crate::http::tunnel::handshake::Asked;
use crate::http::value;
use crate::io::stream::{NewSocket, Transparent};

/// A system call that a socket could not be prepared by.
pub struct NotPrepared<'a> {
    pub level: Level,
    call: Call<'a>,
    pub error: io::Error,
}

enum Call<'a> {
    Option(&'static str),
    Bind(Cow<'a, [u8]>),
}

impl fmt::Display for NotPrepared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.call {
            Call::Option(name) => write!(f, "setsockopt({name}) failed"),
            Call::Bind(address) => write!(f, "bind({}) failed", escape(address)),
        }
    }
}

/// Makes of a new socket what the configuration wants. A value of `*_bind` that is no address is
/// told of and passed over.
pub fn prepare<'a>(
    c: &Connection,
    r: &Request,
    settings: &'a Settings,
    socket: &NewSocket,
) -> Result<(), NotPrepared<'a>> {
    let option =
        |name| move |error| NotPrepared { level: Level::Alert, call: Call::Option(name), error };
    if let Some(size) = *settings.socket_rcvbuf {
        socket.set_receive_buffer(size).map_err(option("SO_RCVBUF"))?;
    }
    if let Some(size) = *settings.socket_sndbuf {
        socket.set_send_buffer(size).map_err(option("SO_SNDBUF"))?;
    }
    if r.message.asked() != Asked::Nothing {
        socket.send_unpaced_on_loopback();
    }
    let Some(bind) = &*settings.bind else { return Ok(()) };
    let Some((address, name)) = address_of(c, r, bind) else { return Ok(()) };
    if bind.is_transparent {
        let name = socket.set_transparent();
        if let Err(Transparent { name, error }) = name {
            return Err(option(name)(error));
        }
    }
    socket.bind(address).map_err(|error| NotPrepared {
        level: Level::Crit,
        call: Call::Bind(name),
        error,
    })
}

/// The address for this request, and how it was written.
fn address_of<'a>(
    c: &Connection,
    r: &Request,
    bind: &'a Bind,
) -> Option<(SocketAddr, Cow<'a, [u8]>)> {
    match &bind.address {
        BindAddress::Fixed { address, text } => Some((*address, text.as_bytes().into())),
        BindAddress::Template(template) => {
            let text = value::expanded(template, c, r);
            if text.is_empty() {
                return None;
            }
            let address = std::str::from_utf8(&text).ok().and_then(parse);
            if address.is_none() {
                let text = escape(&text);
                c.log(r, Level::Error, format_args!("invalid local address \"{text}\""));
            }
            address.map(|address| (address, text.into()))
        }
    }
}

/// `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]:80`. Without a port it is 0: the kernel chooses.
pub fn parse(text: &str) -> Option<SocketAddr> {
    if let Some(ip) = ip(text) {
        return Some(SocketAddr::new(ip, 0));
    }
    let in_brackets = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(ip) = in_brackets {
        return ip.parse().ok().map(|ip| SocketAddr::new(IpAddr::V6(ip), 0));
    }
    ip_and_port(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses() {
        for (text, shown) in [
            ("127.0.0.1", "127.0.0.1:0"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("::1", "[::1]:0"),
            ("[::1]", "[::1]:0"),
            ("[::1]:8080", "[::1]:8080"),
        ] {
            assert_eq!(parse(text).map(|a| a.to_string()).as_deref(), Some(shown));
        }
        for text in [
            "",
            "300.1.1.1",
            "localhost",
            "127.0.0.1:",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "[::1",
            "1.2.3.4:+8",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
