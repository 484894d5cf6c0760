//! Log lines as datagrams to a syslog server (RFC 3164): what `syslog:` in `error_log` and
//! `access_log` says, the head of a line, and a socket that never makes a shard wait.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::address::{Address, Form, Host};
use crate::error_log::Level;
use crate::local_time::LocalTime;

/// Where a server listens when no port is given.
const PORT: u16 = 514;
/// Most characters of a tag (RFC 3164 section 4.1.3).
const TAG_LENGTH_MAX: usize = 32;
/// `local7`
const FACILITY: u8 = 23;

/// The facilities by number.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "intern", "lpr", "news", "uucp", "clock", "authpriv",
    "ftp", "ntp", "audit", "alert", "cron", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];

/// `syslog:server=ADDRESS[,facility=…][,severity=…][,tag=…][,nohostname]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// As written.
    pub name: Box<str>,
    pub address: ServerAddress,
    /// 0 to 23.
    pub facility: u8,
    /// Of access-log lines; an error line has its own level.
    pub severity: Level,
    pub tag: Box<str>,
    pub has_hostname: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerAddress {
    Udp(SocketAddr),
    Unix(PathBuf),
}

impl Server {
    /// Reads what follows `syslog:`; an error is nginx's sentence. A host name is asked for from the
    /// system, once.
    pub fn parse(parameters: &str) -> Result<Self, String> {
        let mut server = None;
        let mut facility = None;
        let mut severity = None;
        let mut tag = None;
        let mut has_hostname = true;
        for parameter in parameters.split(',') {
            let is_again = match parameter.split_once('=') {
                Some((name @ "server", value)) => server.replace(address(value)?).map(|_| name),
                Some((name @ "facility", value)) => {
                    let known = FACILITIES.iter().position(|facility| *facility == value);
                    let Some(number) = known else {
                        return Err(format!("unknown syslog facility \"{value}\""));
                    };
                    facility.replace(number as u8).map(|_| name)
                }
                Some((name @ "severity", value)) => {
                    let known = Level::ALL.into_iter().find(|level| level.name() == value);
                    let Some(level) = known else {
                        return Err(format!("unknown syslog severity \"{value}\""));
                    };
                    severity.replace(level).map(|_| name)
                }
                Some((name @ "tag", value)) => {
                    if value.len() > TAG_LENGTH_MAX {
                        return Err("syslog tag length exceeds 32".to_owned());
                    }
                    if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                        return Err("syslog \"tag\" only allows alphanumeric characters and \
                                    underscore"
                            .to_owned());
                    }
                    tag.replace(Box::from(value)).map(|_| name)
                }
                _ if parameter == "nohostname" => {
                    has_hostname = false;
                    None
                }
                _ => return Err(format!("unknown syslog parameter \"{parameter}\"")),
            };
            if let Some(name) = is_again {
                return Err(format!("duplicate syslog \"{name}\""));
            }
        }
        let Some((name, address)) = server else {
            return Err("no syslog server specified".to_owned());
        };
        Ok(Server {
            name,
            address,
            facility: facility.unwrap_or(FACILITY),
            severity: severity.unwrap_or(Level::Info),
            tag: tag.unwrap_or_else(|| "nginx".into()),
            has_hostname,
        })
    }

    /// `<187>Nov 22 07:35:16 host nginx: `
    pub fn put_head(&self, severity: Level, time: &LocalTime, hostname: &str, out: &mut Vec<u8>) {
        #[expect(clippy::arithmetic_side_effects, reason = "eight bits and three")]
        let priority = u64::from(self.facility) * 8 + severity as u64;
        out.push(b'<');
        out.extend_from_slice(itoa::Buffer::new().format(priority).as_bytes());
        out.push(b'>');
        // `22/Nov/2026:07:35:16 +0000`
        let time = time.common();
        let day = if time[0] == b'0' { [b' ', time[1]] } else { [time[0], time[1]] };
        let (month, clock) = (&time[3..6], &time[12..20]);
        for part in [month, b" ", &day, b" ", clock, b" "] {
            out.extend_from_slice(part);
        }
        if self.has_hostname {
            out.extend_from_slice(hostname.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(self.tag.as_bytes());
        out.extend_from_slice(b": ");
    }
}

/// The value of `server=`: its text, and the first address it has.
fn address(text: &str) -> Result<(Box<str>, ServerAddress), String> {
    let failed = |error| format!("{error} in syslog server \"{text}\"");
    let parsed = Address::parse(text, Form::Peer).map_err(failed)?;
    let address = if let Host::Unix(path) = &parsed.host {
        ServerAddress::Unix(path.clone())
    } else {
        let found = parsed.resolve(parsed.port().unwrap_or(PORT)).map_err(failed)?;
        match found.first() {
            Some(address) => ServerAddress::Udp(*address),
            None => return Err(format!("host not found in syslog server \"{text}\"")),
        }
    };
    Ok((text.into(), address))
}

/// A thread's road to a server: opened with the first line, and anew after a failure.
#[derive(Debug)]
pub struct Sender {
    server: Arc<Server>,
    hostname: Box<str>,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    socket: Option<Socket>,
    /// The datagram being made.
    datagram: Vec<u8>,
}

#[derive(Debug)]
enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

/// Why a line is lost: `send() failed (111: Connection refused)`.
#[derive(Debug)]
pub struct SendError {
    pub call: &'static str,
    pub source: io::Error,
}

impl SendError {
    /// A server that is not there is an error of its own.
    pub fn level(&self) -> Level {
        match (self.call, self.source.kind()) {
            ("send", io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => {
                Level::Error
            }
            _ => Level::Alert,
        }
    }
}

impl Sender {
    pub fn new(server: Arc<Server>) -> Self {
        Sender { server, hostname: crate::os::hostname().into(), state: RefCell::default() }
    }

    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Sends a line without its line feed. `put` appends it. The socket does not block: what it
    /// does not take at once is lost.
    pub fn send(
        &self,
        severity: Level,
        time: &LocalTime,
        put: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), SendError> {
        // A line is no reason to keep much memory.
        const KEPT: usize = 16 << 10;
        let State { socket, datagram } = &mut *self.state.borrow_mut();
        datagram.clear();
        self.server.put_head(severity, time, &self.hostname, datagram);
        put(datagram);
        let sent = Self::send_on(socket, &self.server.address, datagram);
        if sent.as_ref().is_err_and(|error| error.source.kind() != io::ErrorKind::WouldBlock) {
            *socket = None;
        }
        datagram.shrink_to(KEPT);
        sent
    }

    fn send_on(
        socket: &mut Option<Socket>,
        address: &ServerAddress,
        datagram: &[u8],
    ) -> Result<(), SendError> {
        let failed = |call| move |source| SendError { call, source };
        let socket = match socket {
            Some(socket) => socket,
            none => none.insert(Socket::connect(address).map_err(failed("connect"))?),
        };
        match socket {
            Socket::Udp(socket) => socket.send(datagram),
            Socket::Unix(socket) => socket.send(datagram),
        }
        .map(drop)
        .map_err(failed("send"))
    }
}

impl Socket {
    fn connect(address: &ServerAddress) -> io::Result<Self> {
        match address {
            ServerAddress::Udp(address) => {
                let any: SocketAddr = match address {
                    SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                socket.connect(address)?;
                Ok(Socket::Udp(socket))
            }
            ServerAddress::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(path)?;
                Ok(Socket::Unix(socket))
            }
        }
    }
}

/// Any parameters: they are refused with a sentence, or what they say can be the head of a line.
#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
pub fn fuzz_syslog(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // No name is looked up here.
    let text = format!("server=127.0.0.1,{text}");
    match Server::parse(&text) {
        Ok(server) => {
            let mut out = Vec::new();
            server.put_head(server.severity, &LocalTime::at(0), "h", &mut out);
            assert!(out.starts_with(b"<") && out.ends_with(b": "));
            assert!(out.len() <= "<191>Jan  1 00:00:00 h : ".len() + TAG_LENGTH_MAX);
        }
        Err(error) => assert!(!error.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn server(text: &str) -> Server {
        Server::parse(text).unwrap()
    }

    fn head(text: &str, severity: Level, unix: i64) -> String {
        let mut out = Vec::new();
        server(text).put_head(severity, &LocalTime::at(unix), "box", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn parameters() {
        let plain = server("server=127.0.0.1");
        assert_eq!(plain.address, ServerAddress::Udp("127.0.0.1:514".parse().unwrap()));
        assert_eq!((plain.facility, plain.severity, &*plain.tag), (23, Level::Info, "nginx"));
        let full = server("facility=local3,severity=notice,tag=Web_1,nohostname,server=[::1]:12");
        assert_eq!(full.address, ServerAddress::Udp("[::1]:12".parse().unwrap()));
        assert_eq!((full.facility, full.severity, &*full.tag), (19, Level::Notice, "Web_1"));
        assert!(plain.has_hostname && !full.has_hostname);
        assert_eq!(server("server=unix:/dev/log").address, ServerAddress::Unix("/dev/log".into()));
    }

    #[test]
    fn refusals() {
        for (text, error) in [
            ("", "unknown syslog parameter \"\""),
            ("tag=a", "no syslog server specified"),
            ("server=", "no host in syslog server \"\""),
            ("server=a:x", "invalid port in syslog server \"a:x\""),
            ("server=127.0.0.1,facility=x", "unknown syslog facility \"x\""),
            ("severity=x", "unknown syslog severity \"x\""),
            ("nohostnames", "unknown syslog parameter \"nohostnames\""),
            ("host=a", "unknown syslog parameter \"host=a\""),
            ("server=127.0.0.1,server=127.0.0.1", "duplicate syslog \"server\""),
            ("tag=a,tag=b", "duplicate syslog \"tag\""),
            ("facility=user,facility=user", "duplicate syslog \"facility\""),
            ("severity=info,severity=info", "duplicate syslog \"severity\""),
            ("tag=a-b", "syslog \"tag\" only allows alphanumeric characters and underscore"),
            ("tag=123456789012345678901234567890123", "syslog tag length exceeds 32"),
        ] {
            assert_eq!(Server::parse(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn heads() {
        // Within one month whatever the zone.
        let line = head("server=127.0.0.1", Level::Error, 1_795_332_916);
        assert!(line.starts_with("<187>Nov 2") && line.ends_with(" box nginx: "), "{line}");
        assert_eq!(line.len(), "<187>Nov 22 07:35:16 box nginx: ".len());
        let text = "server=127.0.0.1,facility=local3,nohostname,tag=t";
        let line = head(text, Level::Notice, 432_000);
        assert!(line.starts_with("<157>Jan  ") && line.ends_with(" t: "), "{line}");
    }

    #[test]
    fn a_datagram_is_a_line() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = receiver.local_addr().unwrap();
        let sender = Sender::new(server(&format!("server={address},nohostname")).into());
        let time = LocalTime::at(0);
        for text in ["one", "two"] {
            sender.send(Level::Info, &time, |out| out.extend_from_slice(text.as_bytes())).unwrap();
            let mut buffer = [0; 100];
            let length = receiver.recv(&mut buffer).unwrap();
            assert!(buffer[..length].ends_with(format!(" nginx: {text}").as_bytes()));
        }
    }

    #[test]
    fn a_server_that_is_away_and_comes_back() {
        let path = std::env::temp_dir().join(format!("ringx-syslog-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let text = format!("server=unix:{},nohostname", path.display());
        let sender = Sender::new(server(&text).into());
        let send = || sender.send(Level::Info, &LocalTime::at(0), |out| out.push(b'x'));
        assert_eq!(send().unwrap_err().call, "connect");
        let receiver = UnixDatagram::bind(&path).unwrap();
        send().unwrap();
        drop(receiver);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(send().unwrap_err().call, "send");
        let receiver = UnixDatagram::bind(&path).unwrap();
        send().unwrap();
        let mut buffer = [0; 100];
        assert!(receiver.recv(&mut buffer).unwrap() > 0);
        // A queue that is full makes nobody wait.
        let refused = (0..10_000).find_map(|_| send().err()).expect("a queue has an end");
        assert_eq!(refused.source.kind(), io::ErrorKind::WouldBlock);
        std::fs::remove_file(&path).unwrap();
    }

    proptest! {
        #[test]
        fn any_parameters(data in vec(any::<u8>(), 0..60)) {
            fuzz_syslog(&data);
        }

        #[test]
        fn likely_parameters(
            text in "((tag|facility|severity|nohostname)=?(a_1|local0|info)?,?){0,5}"
        ) {
            fuzz_syslog(text.as_bytes());
        }
    }
}
