//! Writing access logs: lines are gathered in memory and written when the shard has no other work,
//! when a buffer is full, and always before a connection that they are about is closed.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::Hold;
use crate::error_log::{FileHandle, Files, OpenError};
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http::server::Http;
use crate::http::value;
use crate::io::select::{Either, Signal, either, yield_now};
use crate::io::timer;
use crate::shard::Shard;

/// Bytes of lines without `buffer=` that are written at the latest.
const PENDING_MAX: usize = 32 << 10;

/// Every access log that a shard has open, under whatever configuration.
#[derive(Default)]
pub struct LogWriters {
    open: RefCell<Vec<Weak<LogWriter>>>,
    /// Raised when lines wait to be written.
    pending: Signal,
}

/// One log file as a shard writes it.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: FileHandle,
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

impl LogWriters {
    /// The writers for a configuration's log files, by their index there. A file that is open
    /// already is shared.
    pub fn open(
        &self,
        http: Option<&Http>,
        files: &Files,
    ) -> Result<Vec<Rc<LogWriter>>, OpenError> {
        let mut open = self.open.borrow_mut();
        open.retain(|writer| writer.strong_count() > 0);
        let paths = http.map(|http| http.log_files.as_slice()).unwrap_or_default();
        let writers = paths.iter().map(|path| {
            if let Some(known) = open.iter().filter_map(Weak::upgrade).find(|w| w.path == *path) {
                return Ok(known);
            }
            let file = FileHandle::new(files.open(path)?);
            let lines = RefCell::default();
            let writer = Rc::new(LogWriter { path: path.clone(), file, lines });
            open.push(Rc::downgrade(&writer));
            Ok(writer)
        });
        writers.collect()
    }

    /// Adds a line to those of one log.
    pub fn add_line(&self, writer: &LogWriter, hold: Hold, put: impl FnOnce(&mut Vec<u8>)) {
        let lines = &mut *writer.lines.borrow_mut();
        let buffered = hold.buffer > 0;
        let out = if buffered { &mut lines.later } else { &mut lines.now };
        let start = out.len();
        put(out);
        out.push(b'\n');
        if buffered {
            if out.len() > hold.buffer {
                // The lines before this one fill the buffer; this one begins the next.
                let line = out.split_off(start);
                writer.write_out(out);
                *out = line;
            }
            if let Some(flush) = hold.flush
                && lines.flush_at_ms.is_none()
            {
                lines.flush_at_ms = Some(timer::now_ms() + flush.as_millis() as u64);
                self.pending.raise();
            }
        } else if out.len() >= PENDING_MAX {
            writer.write_out(out);
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
                    writer.write_out(&mut lines.later);
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
                        timer::sleep(Duration::from_millis(wait)).await;
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
        self.write_out(&mut lines.later);
        lines.flush_at_ms = None;
    }

    fn write_out(&self, lines: &mut Vec<u8>) {
        if !lines.is_empty() {
            self.file.write(lines, crate::clock::now().as_secs() as i64);
            lines.clear();
        }
    }
}

/// Logs a finished request as the location it reached last says.
pub fn write(c: &Connection, r: &Request) {
    let generation = Rc::clone(&r.generation);
    let settings = &generation.http().location(r.location).settings.access_log;
    for log in settings.access_log.iter() {
        if let Some(condition) = &log.condition
            && !value::is_true(&value::expanded(condition, c, r))
        {
            continue;
        }
        let Some(writer) = generation.access_logs.get(log.file) else { continue };
        c.shard.access_logs.add_line(writer, log.hold, |out| {
            value::expand_log(&log.format.line, log.format.escape, c, r, out);
        });
    }
}
