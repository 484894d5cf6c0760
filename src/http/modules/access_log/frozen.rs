//! Log lines for what outlives its request: a tunnel. Everything that is known at the 101 is text by
//! then; what is not is filled in at the end.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Escape;
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http::tunnel::metrics::{Direction, Metrics};
use crate::http::upstream::Attempt;
use crate::http::value;
use crate::http::variable::{Part, Template, Variable, Way, WebSocket};
use crate::local_time::LocalTime;

/// A template with the values of a request in it, but for those that are late: about as many bytes
/// as the line has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    text: Box<[u8]>,
    /// What is missing, and before which byte of the text; in order.
    gaps: Box<[(u32, Late)]>,
    escape: Escape,
}

/// A variable whose value changes until the tunnel ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Late {
    BytesSent,
    BodyBytesSent,
    ConnectionTime,
    Msec,
    RequestTime,
    RequestCompletion,
    TimeIso8601,
    TimeLocal,
    TcpinfoRtt,
    TcpinfoRttvar,
    TcpinfoSndCwnd,
    TcpinfoRcvSpace,
    // Of the `$upstream_*` lists the last try's item; those before it are text.
    UpstreamResponseTime,
    UpstreamBytesSent,
    UpstreamBytesReceived,
    WebSocket(WebSocket),
}

/// The values of late variables at the end of a tunnel.
#[derive(Debug)]
pub struct LateValues<'a> {
    /// Since the epoch.
    pub now: Duration,
    /// To the client, head included.
    pub bytes_sent: u64,
    /// To the client, behind the head.
    pub body_bytes_sent: u64,
    /// Since the connection was accepted.
    pub connection_time: Duration,
    /// Since the request's first byte.
    pub request_time: Duration,
    pub complete: bool,
    /// For `$tcpinfo_*`.
    pub client: BorrowedFd<'a>,
    /// Of the last try.
    pub upstream_response_time: Duration,
    pub upstream_bytes_sent: u64,
    pub upstream_bytes_received: u64,
    /// `None` without `websocket_metrics`.
    pub websocket: Option<&'a Metrics>,
}

impl Frozen {
    /// Expands and escapes a template as [`value::expand_log`] does.
    pub fn new(template: &Template, escape: Escape, c: &Connection, r: &Request) -> Self {
        Self::freeze(template, escape, &r.attempts, |variable, out| {
            value::append_escaped(variable, escape, c, r, out);
        })
    }

    /// `put` appends a variable that is not late, escaped.
    fn freeze(
        template: &Template,
        escape: Escape,
        attempts: &[Attempt],
        put: impl Fn(&Variable, &mut Vec<u8>),
    ) -> Self {
        let mut text = Vec::new();
        let mut gaps = Vec::new();
        for part in &template.parts {
            match part {
                Part::Literal(literal) => text.extend_from_slice(literal),
                Part::Variable(variable) => match Late::of(variable) {
                    Some(late) if late.begin(attempts, &mut text) => {
                        gaps.push((text.len() as u32, late));
                    }
                    _ => put(variable, &mut text),
                },
            }
        }
        Frozen { text: text.into(), gaps: gaps.into(), escape }
    }

    /// Appends the line, or whatever the template is of.
    #[expect(
        clippy::indexing_slicing,
        reason = "gaps are places in text, in order; a line is far from 4 GiB"
    )]
    pub fn put(&self, values: &LateValues<'_>, out: &mut Vec<u8>) {
        let mut from = 0;
        for &(at, late) in &self.gaps {
            out.extend_from_slice(&self.text[from..at as usize]);
            from = at as usize;
            // Digits, dots and month names: there is nothing to escape in them.
            if !late.append(values, out) {
                value::missing(self.escape, out);
            }
        }
        out.extend_from_slice(&self.text[from..]);
    }

    #[cfg(test)]
    pub fn sample() -> Self {
        let gaps = [(2, Late::BytesSent), (3, Late::WebSocket(WebSocket::Frames(Way::In)))];
        Frozen { text: (*b"a  b").into(), gaps: gaps.into(), escape: Escape::Json }
    }

    /// The text, when nothing is missing in it.
    pub fn as_text(&self) -> Option<&[u8]> {
        self.gaps.is_empty().then_some(&self.text)
    }
}

impl Late {
    pub fn of(variable: &Variable) -> Option<Self> {
        Some(match variable {
            Variable::BytesSent => Late::BytesSent,
            Variable::BodyBytesSent => Late::BodyBytesSent,
            Variable::ConnectionTime => Late::ConnectionTime,
            Variable::Msec => Late::Msec,
            Variable::RequestTime => Late::RequestTime,
            Variable::RequestCompletion => Late::RequestCompletion,
            Variable::TimeIso8601 => Late::TimeIso8601,
            Variable::TimeLocal => Late::TimeLocal,
            Variable::TcpinfoRtt => Late::TcpinfoRtt,
            Variable::TcpinfoRttvar => Late::TcpinfoRttvar,
            Variable::TcpinfoSndCwnd => Late::TcpinfoSndCwnd,
            Variable::TcpinfoRcvSpace => Late::TcpinfoRcvSpace,
            Variable::UpstreamResponseTime => Late::UpstreamResponseTime,
            Variable::UpstreamBytesSent => Late::UpstreamBytesSent,
            Variable::UpstreamBytesReceived => Late::UpstreamBytesReceived,
            Variable::WebSocket(which) => Late::WebSocket(*which),
            _ => return None,
        })
    }

    /// Appends the part of a list that is known already. False: there is no list, and the value will
    /// still be missing at the end.
    fn begin(self, attempts: &[Attempt], out: &mut Vec<u8>) -> bool {
        let item: fn(&Attempt, &mut Vec<u8>) = match self {
            Late::UpstreamResponseTime => |a, out| value::time(out, a.response),
            Late::UpstreamBytesSent => |a, out| _ = value::number(out, a.bytes_sent),
            Late::UpstreamBytesReceived => |a, out| _ = value::number(out, a.bytes_received),
            _ => return true,
        };
        let is_last = |a| attempts.last().is_some_and(|last| std::ptr::eq(last, a));
        value::put_attempts(attempts, out, |a, out| {
            if !is_last(a) {
                item(a, out);
            }
        })
    }

    /// Appends the value; tells whether there is one.
    fn append(self, values: &LateValues<'_>, out: &mut Vec<u8>) -> bool {
        let local_time = || LocalTime::at(values.now.as_secs() as i64);
        match self {
            Late::BytesSent => value::number(out, values.bytes_sent),
            Late::BodyBytesSent => value::number(out, values.body_bytes_sent),
            Late::ConnectionTime => value::seconds(out, values.connection_time),
            Late::Msec => value::seconds(out, values.now),
            Late::RequestTime => value::seconds(out, values.request_time),
            Late::RequestCompletion => value::put(out, value::completion(values.complete)),
            Late::TimeIso8601 => value::put(out, local_time().iso8601()),
            Late::TimeLocal => value::put(out, local_time().common()),
            Late::TcpinfoRtt => value::tcp_info(values.client, out, |info| info.tcpi_rtt),
            Late::TcpinfoRttvar => value::tcp_info(values.client, out, |info| info.tcpi_rttvar),
            Late::TcpinfoSndCwnd => value::tcp_info(values.client, out, |info| info.tcpi_snd_cwnd),
            Late::TcpinfoRcvSpace => {
                value::tcp_info(values.client, out, |info| info.tcpi_rcv_space)
            }
            Late::UpstreamResponseTime => value::seconds(out, values.upstream_response_time),
            Late::UpstreamBytesSent => value::number(out, values.upstream_bytes_sent),
            Late::UpstreamBytesReceived => value::number(out, values.upstream_bytes_received),
            Late::WebSocket(which) => {
                values.websocket.is_some_and(|metrics| append_websocket(which, metrics, out))
            }
        }
    }
}

fn append_websocket(which: WebSocket, metrics: &Metrics, out: &mut Vec<u8>) -> bool {
    let side = |way: Way| -> &Direction {
        match way {
            Way::In => &metrics.from_client,
            Way::Out => &metrics.from_upstream,
        }
    };
    match which {
        WebSocket::Frames(way) => value::number(out, side(way).frames.iter().sum()),
        WebSocket::Messages(way) => value::number(out, side(way).messages),
        WebSocket::FramesOf(kind, way) => value::number(out, side(way).frames_of(kind)),
        WebSocket::CloseCode(way) => {
            side(way).close_code.is_some_and(|code| value::number(out, u64::from(code)))
        }
        WebSocket::PingRtt => metrics.ping_rtt.is_some_and(|rtt| value::seconds(out, rtt)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::http::variable::{FIXED, Names};

    fn values<'a>(client: BorrowedFd<'a>, websocket: Option<&'a Metrics>) -> LateValues<'a> {
        LateValues {
            now: Duration::from_millis(1_795_332_916_789),
            bytes_sent: 1200,
            body_bytes_sent: 1000,
            connection_time: Duration::from_millis(3_600_001),
            request_time: Duration::from_millis(3_599_010),
            complete: true,
            client,
            upstream_response_time: Duration::from_millis(3_598_500),
            upstream_bytes_sent: 77,
            upstream_bytes_received: 1100,
            websocket,
        }
    }

    fn attempt(response_ms: u64, sent: u64, received: u64) -> Attempt {
        Attempt {
            address: Some("127.0.0.1:81".into()),
            status: 502,
            response: Some(Duration::from_millis(response_ms)),
            bytes_sent: sent,
            bytes_received: received,
            ..Attempt::default()
        }
    }

    /// Freezes with `<>` for every variable that is not late, and puts the values in.
    fn line(format: &str, escape: Escape, attempts: &[Attempt], values: &LateValues<'_>) -> String {
        let template = Names::default().template(format).unwrap();
        let frozen = Frozen::freeze(&template, escape, attempts, |_, out| out.extend(b"<>"));
        let mut out = b"before|".to_vec();
        frozen.put(values, &mut out);
        String::from_utf8(out).unwrap().split_off(7)
    }

    #[test]
    fn late_values_stand_where_their_variables_stood() {
        let null = File::open("/dev/null").unwrap();
        let values = values(null.as_fd(), None);
        let line = |format| line(format, Escape::Default, &[], &values);
        assert_eq!(
            line("$bytes_sent$body_bytes_sent $host \"$connection_time\" $msec$request_time"),
            "12001000 <> \"3600.001\" 1795332916.7893599.010"
        );
        assert_eq!(line("[$request_completion]"), "[OK]");
        assert_eq!(line("$tcpinfo_rtt"), "-");
        assert_eq!(line("only text"), "only text");
        assert_eq!(line(""), "");
        let time = LocalTime::at(1_795_332_916);
        let times = [time.iso8601(), b" ", time.common()].concat();
        assert_eq!(line("$time_iso8601 $time_local").as_bytes(), times);
    }

    #[test]
    fn the_kernel_is_asked_at_the_end() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let values = values(stream.as_fd(), None);
        let format = "$tcpinfo_snd_cwnd $tcpinfo_rcv_space $tcpinfo_rtt $tcpinfo_rttvar";
        let line = line(format, Escape::Default, &[], &values);
        let numbers: Vec<u32> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        assert_eq!(numbers.len(), 4);
        assert!(numbers[..2].iter().all(|number| *number > 0), "{line}");
    }

    #[test]
    fn of_the_upstream_lists_the_last_item_is_late() {
        let null = File::open("/dev/null").unwrap();
        let values = values(null.as_fd(), None);
        let line = |attempts: &[Attempt]| {
            let format = "$upstream_response_time;$upstream_bytes_sent;$upstream_bytes_received;$upstream_addr";
            line(format, Escape::Default, attempts, &values)
        };
        let (first, second) = (attempt(1, 10, 100), attempt(2, 20, 200));
        let third = attempt(3, 30, 300);
        assert_eq!(line(&[]), "<>;<>;<>;<>");
        assert_eq!(line(std::slice::from_ref(&first)), "3598.500;77;1100;<>");
        assert_eq!(
            line(&[first, second, Attempt::boundary(), third]),
            "0.001, 0.002 : 3598.500;10, 20 : 77;100, 200 : 1100;<>"
        );
    }

    #[test]
    fn websocket_counts() {
        let mut metrics = Metrics::default();
        metrics.from_client.frames = [1, 2, 3, 4, 5, 6];
        metrics.from_client.messages = 7;
        metrics.from_upstream.frames = [10, 20, 30, 40, 50, 60];
        metrics.from_upstream.messages = 70;
        metrics.from_upstream.close_code = Some(1001);
        metrics.ping_rtt = Some(Duration::from_millis(42));
        let null = File::open("/dev/null").unwrap();
        let format = |way: &str| {
            ["frames", "messages", "continuations", "text", "binary", "closes", "pings", "pongs"]
                .map(|name| format!("$websocket_{name}_{way}"))
                .join(" ")
                + &format!(" $websocket_close_code_{way} $websocket_ping_rtt")
        };
        let line = |way: &str, escape, metrics| {
            line(&format(way), escape, &[], &values(null.as_fd(), metrics))
        };
        let seen = Some(&metrics);
        assert_eq!(line("in", Escape::Default, seen), "21 7 1 2 3 4 5 6 - 0.042");
        assert_eq!(line("in", Escape::Json, seen), "21 7 1 2 3 4 5 6  0.042");
        assert_eq!(line("out", Escape::Default, seen), "210 70 10 20 30 40 50 60 1001 0.042");
        assert_eq!(line("out", Escape::Default, None), "- - - - - - - - - -");
        assert_eq!(line("out", Escape::None, None), "         ");
    }

    #[test]
    fn only_what_changes_in_a_tunnel_is_late() {
        let late: Vec<&str> = FIXED
            .iter()
            .filter(|(_, variable)| Late::of(variable).is_some())
            .map(|(name, _)| *name)
            .filter(|name| !name.starts_with("websocket_"))
            .collect();
        assert_eq!(
            late,
            [
                "body_bytes_sent",
                "bytes_sent",
                "connection_time",
                "msec",
                "request_completion",
                "request_time",
                "tcpinfo_rcv_space",
                "tcpinfo_rtt",
                "tcpinfo_rttvar",
                "tcpinfo_snd_cwnd",
                "time_iso8601",
                "time_local",
                "upstream_bytes_received",
                "upstream_bytes_sent",
                "upstream_response_time",
            ]
        );
    }

    #[test]
    fn a_gap_is_eight_bytes() {
        assert_eq!(size_of::<(u32, Late)>(), 8);
    }
}
