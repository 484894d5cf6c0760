//! What a tunnel says in the logs, prepared at the 101: the request, the connection and their
//! configuration are gone by the time it is said.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::metrics::Metrics;
use crate::clock;
use crate::error_log::{Files, Level, Log, OpenError, Tail, Target};
use crate::http::action::Action;
use crate::http::connection::Connection;
use crate::http::modules::access_log::{
    AccessLog, AccessLogs, Escape, Frozen, LateValues, LogWriters, Lost, PackedSink, Sink,
};
use crate::http::request::Request;
use crate::http::value;

/// The last lines of a request whose connection became a tunnel. Holds log files, and no
/// configuration.
#[derive(Debug)]
pub struct Record {
    /// `$connection`
    serial: u64,
    error_log: Log,
    /// ` while proxying upgraded connection, client: …`
    tail: Tail,
    lines: Box<[Line]>,
    // Time since the epoch.
    accepted: Duration,
    started: Duration,
    upstream_started: Duration,
    // What was sent and received until the 101 was sent on.
    bytes_sent: u64,
    body_bytes_sent: u64,
    upstream_bytes_sent: u64,
    upstream_bytes_received: u64,
}

/// A line of one access log.
#[derive(Debug)]
struct Line {
    sink: Sink,
    text: Frozen,
    /// `if=`, when it depends on what is not known yet.
    condition: Option<Box<Frozen>>,
}

/// A [`Record`] as bytes: logs by their places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    serial: u64,
    error_log: Vec<Target>,
    tail: Tail,
    lines: Vec<PackedLine>,
    // Of the machine's monotonic clock.
    accepted: Duration,
    started: Duration,
    upstream_started: Duration,
    bytes_sent: u64,
    body_bytes_sent: u64,
    upstream_bytes_sent: u64,
    upstream_bytes_received: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PackedLine {
    sink: PackedSink,
    text: Frozen,
    condition: Option<Box<Frozen>>,
}

#[cfg(test)]
impl Packed {
    pub fn sample() -> Self {
        use crate::error_log::Destination;

        let log = |path: &str| Destination::File(path.into());
        Packed {
            serial: 9,
            error_log: vec![Target { destination: log("/l/error.log"), level: Level::Warn }],
            tail: Tail::sample(),
            lines: vec![PackedLine {
                sink: PackedSink::File { path: "/l/access.log".into(), hold: Default::default() },
                text: Frozen::sample(),
                condition: None,
            }],
            accepted: Duration::from_millis(1),
            started: Duration::from_millis(2),
            upstream_started: Duration::from_millis(3),
            bytes_sent: 4,
            body_bytes_sent: 5,
            upstream_bytes_sent: 6,
            upstream_bytes_received: 7,
        }
    }
}

/// Where a record that comes from elsewhere finds its logs.
pub struct Logs<'a> {
    pub files: &'a Files,
    pub writers: &'a LogWriters,
    /// Of the configuration in force.
    pub access_logs: &'a AccessLogs,
    /// Where an error log goes that cannot be opened.
    pub main_log: &'a Log,
    /// Error logs found so far: tunnels come many at a time.
    pub known: Vec<(Vec<Target>, Log)>,
}

/// What a tunnel knows at its end.
#[derive(Debug)]
pub struct Ended<'a> {
    /// Bytes sent to the client by the tunnel: behind what [`Record::new`] found sent.
    pub to_client: u64,
    /// Bytes received by the tunnel.
    pub from_upstream: u64,
    /// Bytes sent by the tunnel.
    pub to_upstream: u64,
    /// `$request_completion`
    pub complete: bool,
    /// Still open, for `$tcpinfo_*`.
    pub client: BorrowedFd<'a>,
    /// With `websocket_metrics on`.
    pub websocket: Option<&'a Metrics>,
}

impl Record {
    /// At the 101, after its head was sent and before the bytes of the upstream's are given away.
    ///
    /// The time of the upstream's exchange goes on from what the last try's response time says now,
    /// or else its header time.
    pub fn new(c: &Connection, r: &Request) -> Self {
        let location = r.generation.http().location(r.location);
        let logs = location.settings.access_log.access_log.iter();
        let last = r.attempts.last();
        let exchange = last.and_then(|last| last.response.or(last.header)).unwrap_or_default();
        Record {
            serial: c.serial,
            error_log: r.generation.log(r.location).clone(),
            tail: c.with_log_context(r, Action::ProxyingUpgraded, Tail::new),
            lines: logs.filter_map(|log| Line::new(log, c, r)).collect(),
            accepted: c.accepted,
            started: r.started,
            upstream_started: clock::steady().saturating_sub(exchange),
            bytes_sent: r.response.bytes_sent,
            body_bytes_sent: r.response.body_bytes(),
            upstream_bytes_sent: last.map_or(0, |last| last.bytes_sent),
            upstream_bytes_received: last.map_or(0, |last| last.bytes_received),
        }
    }

    pub fn pack(&self) -> Packed {
        let line = |line: &Line| PackedLine {
            sink: line.sink.pack(),
            text: line.text.clone(),
            condition: line.condition.clone(),
        };
        Packed {
            serial: self.serial,
            error_log: self.error_log.targets(),
            tail: self.tail.clone(),
            lines: self.lines.iter().map(line).collect(),
            accepted: clock::monotonic(self.accepted),
            started: clock::monotonic(self.started),
            upstream_started: clock::monotonic(self.upstream_started),
            bytes_sent: self.bytes_sent,
            body_bytes_sent: self.body_bytes_sent,
            upstream_bytes_sent: self.upstream_bytes_sent,
            upstream_bytes_received: self.upstream_bytes_received,
        }
    }

    /// Lines whose log cannot be opened are lost, which is said once in the error log.
    pub fn unpack(packed: Packed, logs: &mut Logs<'_>) -> Self {
        let error_log = logs.error_log(packed.error_log);
        let mut lines = Vec::with_capacity(packed.lines.len());
        for PackedLine { sink, text, condition } in packed.lines {
            match Sink::unpack(sink, logs.writers, logs.access_logs, logs.files) {
                Ok(sink) => lines.push(Line { sink, text, condition }),
                Err(error) => error_log.say(Level::Emerg, format_args!("{error}")),
            }
        }
        Record {
            serial: packed.serial,
            error_log,
            tail: packed.tail,
            lines: lines.into(),
            accepted: clock::of_monotonic(packed.accepted),
            started: clock::of_monotonic(packed.started),
            upstream_started: clock::of_monotonic(packed.upstream_started),
            bytes_sent: packed.bytes_sent,
            body_bytes_sent: packed.body_bytes_sent,
            upstream_bytes_sent: packed.upstream_bytes_sent,
            upstream_bytes_received: packed.upstream_bytes_received,
        }
    }

    /// A line in the error log, with everything nginx says about the connection and the request.
    pub fn log(&self, level: Level, text: fmt::Arguments<'_>, errno: Option<i32>) {
        self.error_log.write_with_tail(level, Some(self.serial), text, errno, &self.tail);
    }

    /// The access log's lines. They are written when the shard is idle, or with
    /// [`LogWriters::flush_pending`].
    pub fn write_access(&self, logs: &LogWriters, ended: &Ended<'_>) {
        let (wall, now) = (clock::now(), clock::steady());
        let values = LateValues {
            now: wall,
            bytes_sent: self.bytes_sent.saturating_add(ended.to_client),
            body_bytes_sent: self.body_bytes_sent.saturating_add(ended.to_client),
            connection_time: now.saturating_sub(self.accepted),
            request_time: now.saturating_sub(self.started),
            complete: ended.complete,
            client: ended.client,
            upstream_response_time: now.saturating_sub(self.upstream_started),
            upstream_bytes_sent: self.upstream_bytes_sent.saturating_add(ended.to_upstream),
            upstream_bytes_received: self
                .upstream_bytes_received
                .saturating_add(ended.from_upstream),
            websocket: ended.websocket,
        };
        for line in &self.lines {
            if line.is_wanted(&values) {
                match logs.add_late(&line.sink, &values, |out| line.text.put(&values, out)) {
                    Ok(()) => {}
                    Err(Lost::Path(error)) => {
                        if error.is_told(now.as_secs() as i64) {
                            let errno = error.source.raw_os_error();
                            self.log(error.level(), format_args!("{error}"), errno);
                        }
                    }
                    Err(Lost::Syslog(sender, error)) => {
                        self.error_log.complain(sender, &error, now.as_secs() as i64);
                    }
                }
            }
        }
    }
}

impl Logs<'_> {
    fn error_log(&mut self, targets: Vec<Target>) -> Log {
        if let Some((_, log)) = self.known.iter().find(|(known, _)| *known == targets) {
            return log.clone();
        }
        let log = Log::open(&targets, self.files).unwrap_or_else(|error: OpenError| {
            self.main_log.say(Level::Emerg, format_args!("{error}"));
            self.main_log.clone()
        });
        self.known.push((targets, log.clone()));
        log
    }
}

impl Line {
    /// `None`: there will be no line, whatever the tunnel does.
    fn new(log: &AccessLog, c: &Connection, r: &Request) -> Option<Self> {
        let condition = log.condition.as_ref().map(|it| Frozen::new(it, Escape::None, c, r));
        let condition = match condition.as_ref().map(Frozen::as_text) {
            Some(Some(known)) if value::is_true(known) => None,
            Some(Some(_)) => return None,
            _ => condition.map(Box::new),
        };
        let sink = Sink::new(log, c, r)?;
        let text = Frozen::new(&log.format.line, log.format.escape, c, r);
        Some(Line { sink, text, condition })
    }

    fn is_wanted(&self, values: &LateValues<'_>) -> bool {
        self.condition.as_ref().is_none_or(|condition| {
            let mut value = Vec::new();
            condition.put(values, &mut value);
            value::is_true(&value)
        })
    }
}
