//! Writing access logs. Lines for files are gathered in memory and written when the shard has no
//! other work, when a buffer is full, and always before a connection that they are about is closed;
//! others go out at once.

use std::cell::{Cell, RefCell};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::path::{PathError, PathFiles};
use super::{AccessFile, AccessLog, Escape, FileCache, Frozen, Hold, LateValues, To};
use crate::clock;
use crate::error_log::{Files, LogFile, OpenError};
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http::server::Http;
use crate::http::value;
use crate::io::select::{Either, Signal, either, yield_now};
use crate::io::timer;
use crate::local_time::LocalTime;
use crate::shard::Shard;
use crate::syslog::{SendError, Sender, Server};

/// Bytes of lines without `buffer=` that are written at the latest.
const PENDING_MAX: usize = 32 << 10;

/// Every access log that a shard has open, under whatever configuration.
#[derive(Default)]
pub struct LogWriters {
    open: RefCell<Vec<Weak<LogWriter>>>,
    /// The logs with variables in their paths.
    paths: RefCell<PathFiles>,
    /// Raised when lines wait to be written.
    pending: Signal,
}

/// One log file as a shard writes it.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: Arc<LogFile>,
    /// As the newest configuration has it.
    hold: Cell<Hold>,
    lines: RefCell<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    /// Without `buffer=`: written as soon as the shard is idle.
    now: Vec<u8>,
    /// With `buffer=`: written when full, or `flush=` after the first line.
    later: Vec<u8>,
    flush_at_ms: Option<u64>,
}

/// What a configuration logs to, by the indexes of its settings.
#[derive(Debug, Default)]
pub struct AccessLogs {
    files: Vec<Rc<LogWriter>>,
    servers: Vec<Rc<Sender>>,
}

/// Where the line of a tunnel will go. Holds no configuration.
#[derive(Debug)]
pub enum Sink {
    File(Rc<LogWriter>),
    Path { path: Frozen, cache: Option<FileCache> },
    Syslog(Rc<Sender>),
}

/// A [`Sink`] by its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PackedSink {
    File { path: PathBuf, hold: Hold },
    Path { path: Frozen, cache: Option<FileCache> },
    Syslog(Server),
}

/// Why a line is lost.
#[derive(Debug)]
pub enum Lost<'a> {
    Path(PathError),
    Syslog(&'a Sender, SendError),
}

impl LogWriters {
    /// The writers for a configuration's log files, by their index there. A file that is open
    /// already is shared.
    pub fn open(&self, http: Option<&Http>, files: &Files) -> Result<AccessLogs, OpenError> {
        let mut open = self.open.borrow_mut();
        open.retain(|writer| writer.strong_count() > 0);
        let wanted = http.map(|http| http.log_files.as_slice()).unwrap_or_default();
        let writers = wanted.iter().map(|AccessFile { path, hold }| {
            if let Some(known) = open.iter().filter_map(Weak::upgrade).find(|w| w.path == *path) {
                // What was held back is not left to what holds from now on.
                known.flush();
                known.hold.set(*hold);
                return Ok(known);
            }
            open_new(&mut open, path, *hold, files)
        });
        let files = writers.collect::<Result<_, _>>()?;
        let servers = http.map(|http| http.log_servers.as_slice()).unwrap_or_default();
        let servers = servers.iter().map(|server| Rc::new(Sender::new(server.clone()))).collect();
        Ok(AccessLogs { files, servers })
    }

    /// The writer of a file that the configuration need not name any more.
    fn open_one(&self, path: &Path, hold: Hold, files: &Files) -> Result<Rc<LogWriter>, OpenError> {
        let mut open = self.open.borrow_mut();
        let known = open.iter().filter_map(Weak::upgrade).find(|writer| writer.path == *path);
        known.map_or_else(|| open_new(&mut open, path, hold, files), Ok)
    }

    /// Adds the line of a tunnel that has ended.
    pub fn add_late<'a>(
        &self,
        sink: &'a Sink,
        values: &LateValues<'_>,
        put: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Lost<'a>> {
        match sink {
            Sink::File(writer) => {
                self.add_line(writer, put);
                Ok(())
            }
            Sink::Path { path, cache } => {
                let mut expanded = Vec::new();
                path.put(values, &mut expanded);
                self.write_to_path(&expanded, *cache, put).map_err(Lost::Path)
            }
            Sink::Syslog(sender) => send(sender, put),
        }
    }

    fn write_to_path(
        &self,
        path: &[u8],
        cache: Option<FileCache>,
        put: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), PathError> {
        let mut line = Vec::new();
        put(&mut line);
        line.push(b'\n');
        self.paths.borrow_mut().write(path, &line, cache, timer::now_ms())
    }

    /// Adds a line to those of one file.
    fn add_line(&self, writer: &LogWriter, put: impl FnOnce(&mut Vec<u8>)) {
        let hold = writer.hold.get();
        let lines = &mut *writer.lines.borrow_mut();
        let buffered = hold.buffer > 0;
        let out = if buffered { &mut lines.later } else { &mut lines.now };
        let start = out.len();
        put(out);
        out.push(b'\n');
        if buffered {
            if out.len() > hold.buffer {
                // The lines before this one fill the buffer; this one begins the next, if that has
                // room for it.
                let line = out.split_off(start);
                writer.write_later(lines);
                lines.later = line;
                lines.flush_at_ms = None;
                if lines.later.len() > hold.buffer {
                    writer.write_later(lines);
                    return;
                }
            }
            if let Some(flush) = hold.flush
                && lines.flush_at_ms.is_none()
            {
                let flush_ms = u64::try_from(flush.as_millis()).unwrap_or(u64::MAX);
                lines.flush_at_ms = Some(timer::now_ms().saturating_add(flush_ms));
                self.pending.raise();
            }
        } else if out.len() >= PENDING_MAX {
            writer.write_out(&mut lines.now);
        } else if start == 0 {
            self.pending.raise();
        }
    }

    /// Writes the lines that are due now.
    pub fn flush_pending(&self) {
        self.each(|writer| writer.write_out(&mut writer.lines.borrow_mut().now));
    }

    /// Writes everything: reopening, quitting, a new configuration.
    pub fn flush_all(&self) {
        self.each(LogWriter::flush);
        self.paths.borrow_mut().close_all();
    }

    fn each(&self, mut apply: impl FnMut(&LogWriter)) {
        for writer in self.open.borrow().iter() {
            if let Some(writer) = writer.upgrade() {
                apply(&writer);
            }
        }
    }

    /// Writes the buffers whose `flush=` has come; tells when the next one comes.
    fn flush_due(&self, now_ms: u64) -> Option<u64> {
        let mut next: Option<u64> = None;
        self.each(|writer| {
            let lines = &mut *writer.lines.borrow_mut();
            match lines.flush_at_ms {
                Some(at) if at <= now_ms => {
                    writer.write_later(lines);
                    lines.flush_at_ms = None;
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        });
        next
    }

    /// The shard's writing task: wakes when a line was logged, lets everything that is ready run
    /// first, then writes what has gathered in one call a file.
    pub async fn write_behind(shard: Rc<Shard>) {
        let logs = &shard.access_logs;
        loop {
            let next = logs.flush_due(timer::now_ms());
            let due = async {
                match next {
                    Some(at) => {
                        let wait = at.saturating_sub(timer::now_ms());
                        // Not cut short by the forced end, which it is to write the lines of.
                        timer::sleep_through(Duration::from_millis(wait)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            if let Either::First(()) = either(logs.pending.wait(), due).await {
                yield_now().await;
                logs.flush_pending();
            }
        }
    }
}

fn open_new(
    open: &mut Vec<Weak<LogWriter>>,
    path: &Path,
    hold: Hold,
    files: &Files,
) -> Result<Rc<LogWriter>, OpenError> {
    let file = files.open(path)?;
    let (path, hold, lines) = (path.to_owned(), Cell::new(hold), RefCell::default());
    let writer = Rc::new(LogWriter { path, file, hold, lines });
    open.push(Rc::downgrade(&writer));
    Ok(writer)
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.flush();
    }
}

impl LogWriter {
    /// Writes everything it holds back.
    fn flush(&self) {
        let lines = &mut *self.lines.borrow_mut();
        self.write_out(&mut lines.now);
        self.write_later(lines);
        lines.flush_at_ms = None;
    }

    fn write_later(&self, lines: &mut Lines) {
        if let (Some(level), false) = (self.hold.get().gzip, lines.later.is_empty()) {
            // A whole gzip file each time: one after the other they are one again (RFC 1952, 2.2).
            match compress(&lines.later, level) {
                Ok(compressed) => lines.later = compressed,
                // Memory takes everything.
                Err(_) => return,
            }
        }
        self.write_out(&mut lines.later);
    }

    fn write_out(&self, lines: &mut Vec<u8>) {
        if !lines.is_empty() {
            self.file.write(lines, clock::seconds());
            lines.clear();
        }
    }
}

fn compress(text: &[u8], level: u8) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level.into()));
    encoder.write_all(text)?;
    encoder.finish()
}

/// Logs a finished request as the location it reached last says.
pub fn write(c: &Connection, r: &Request) {
    let generation = Rc::clone(&r.generation);
    let settings = &generation.http().location(r.location).settings.access_log;
    for log in settings.access_log.iter() {
        if let Some(condition) = &log.condition
            && !value::is_true(&value::expanded(condition, c, r))
            // What cannot be decided is better logged.
            && !r.has_given_up()
        {
            continue;
        }
        let logs = &c.shard.access_logs;
        let put = |out: &mut Vec<u8>| {
            value::expand_log(&log.format.line, log.format.escape, c, r, out);
        };
        let written = match &log.to {
            To::File(file) => match generation.access_logs.files.get(*file) {
                Some(writer) => {
                    logs.add_line(writer, put);
                    Ok(())
                }
                None => Ok(()),
            },
            To::Path(path) => test_root(c, r)
                .and_then(|()| {
                    let path = value::expanded(path, c, r);
                    logs.write_to_path(&path, *settings.open_log_file_cache, put)
                })
                .map_err(Lost::Path),
            To::Syslog(server) => match generation.access_logs.servers.get(*server) {
                Some(sender) => send(sender, put),
                None => Ok(()),
            },
        };
        match written {
            Ok(()) => {}
            Err(Lost::Path(error)) => tell(c, r, &error),
            Err(Lost::Syslog(sender, error)) => {
                generation.main_log().complain(sender, &error, clock::seconds());
            }
        }
    }
}

impl Sink {
    /// Where the lines of a log go for this request; `None`: nowhere.
    pub fn new(log: &AccessLog, c: &Connection, r: &Request) -> Option<Self> {
        let logs = &r.generation.access_logs;
        Some(match &log.to {
            To::File(file) => Sink::File(Rc::clone(logs.files.get(*file)?)),
            To::Path(path) => {
                if let Err(error) = test_root(c, r) {
                    tell(c, r, &error);
                    return None;
                }
                let settings = &r.generation.http().location(r.location).settings;
                Sink::Path {
                    path: Frozen::new(path, Escape::None, c, r),
                    cache: *settings.access_log.open_log_file_cache,
                }
            }
            To::Syslog(server) => Sink::Syslog(Rc::clone(logs.servers.get(*server)?)),
        })
    }

    /// The file, where it is always the same.
    pub fn file(&self) -> Option<&Arc<LogFile>> {
        match self {
            Sink::File(writer) => Some(&writer.file),
            Sink::Path { .. } | Sink::Syslog(_) => None,
        }
    }

    pub fn pack(&self) -> PackedSink {
        match self {
            Sink::File(writer) => {
                PackedSink::File { path: writer.path.clone(), hold: writer.hold.get() }
            }
            Sink::Path { path, cache } => PackedSink::Path { path: path.clone(), cache: *cache },
            Sink::Syslog(sender) => PackedSink::Syslog(Server::clone(sender.server())),
        }
    }

    pub fn unpack(
        packed: PackedSink,
        writers: &LogWriters,
        logs: &AccessLogs,
        files: &Files,
    ) -> Result<Self, OpenError> {
        Ok(match packed {
            PackedSink::File { path, hold } => Sink::File(writers.open_one(&path, hold, files)?),
            PackedSink::Path { path, cache } => Sink::Path { path, cache },
            PackedSink::Syslog(server) => {
                let known = logs.servers.iter().find(|sender| **sender.server() == server);
                let new = || Rc::new(Sender::new(Arc::new(server.clone())));
                Sink::Syslog(known.map_or_else(new, Rc::clone))
            }
        })
    }
}

fn send(sender: &Sender, put: impl FnOnce(&mut Vec<u8>)) -> Result<(), Lost<'_>> {
    let time = LocalTime::at(clock::seconds());
    sender.send(sender.server().severity, &time, put).map_err(|error| Lost::Syslog(sender, error))
}

/// Values in a path are the client's: only where a directory stands that is known to be is anything
/// made.
fn test_root(c: &Connection, r: &Request) -> Result<(), PathError> {
    let mut root = Vec::new();
    value::document_root(c, r, &mut root);
    PathError::test_root(&root)
}

fn tell(c: &Connection, r: &Request, error: &PathError) {
    if error.is_told(clock::seconds()) {
        c.log_errno(r, error.level(), format_args!("{error}"), &error.source);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::MultiGzDecoder;

    use super::*;

    #[test]
    fn compressed_pieces_are_one_text() {
        let mut written = compress(b"one\n", 1).unwrap();
        written.extend(compress(b"two\n", 9).unwrap());
        let mut text = String::new();
        MultiGzDecoder::new(written.as_slice()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\n");
    }
}
