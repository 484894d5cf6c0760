//! The error log: levels, destinations, and lines in nginx's form.
//!
//! Files belong to the process ([`Files`]) and are reopened all at once; a [`Log`] belongs to a
//! thread and is what one `error_log` setting amounts to. A line is one `write(2)` on a file opened
//! for appending, so lines of several threads never mix and nothing is buffered when a crash comes.

mod file;
mod line;

use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use file::{Files, LogFile, OnceAMinute, OpenError, WRITE_FAILURES};
pub use line::{Errno, Escaped, LINE_LENGTH_MAX, Tail, escape, fuzz_escape};

use crate::local_time::LocalTime;
use crate::syslog::{self, Sender};
use line::Line;

/// Most severe first, as in the `error_log` directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    Emerg,
    Alert,
    Crit,
    Error,
    Warn,
    Notice,
    Info,
    Debug,
}

impl Level {
    pub const ALL: [Self; 8] = [
        Self::Emerg,
        Self::Alert,
        Self::Crit,
        Self::Error,
        Self::Warn,
        Self::Notice,
        Self::Info,
        Self::Debug,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Emerg => "emerg",
            Self::Alert => "alert",
            Self::Crit => "crit",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Notice => "notice",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// The level of a name in the configuration. nginx's partial debug levels (`debug_http`) are
    /// debug.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "debug_core" | "debug_alloc" | "debug_mutex" | "debug_event" | "debug_http"
            | "debug_mail" | "debug_stream" => Some(Self::Debug),
            _ => Self::ALL.into_iter().find(|level| level.name() == name),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One `error_log` line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub destination: Destination,
    pub level: Level,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    File(PathBuf),
    Stderr,
    Syslog(Arc<syslog::Server>),
}

impl Destination {
    /// Whether it is on this machine: nginx keeps a log that is, whatever is sent elsewhere.
    pub fn is_file(&self) -> bool {
        match self {
            Destination::File(_) | Destination::Stderr => true,
            Destination::Syslog(_) => false,
        }
    }
}

/// Where a thread's messages go. Cloning is cheap; it cannot leave its thread.
#[derive(Debug, Clone)]
pub struct Log {
    outputs: Rc<[(Level, Output)]>,
    /// The least severe level that any output takes.
    level: Level,
}

#[derive(Debug)]
enum Output {
    File(Arc<LogFile>),
    Stderr,
    Syslog(Sender),
    /// Standard error before there are workers: for a person at a terminal, so without the time.
    Startup,
}

impl Log {
    /// The log of one `error_log` setting. Files that are open already are shared.
    pub fn open(targets: &[Target], files: &Files) -> Result<Self, OpenError> {
        let outputs = targets.iter().map(|Target { destination, level }| {
            Ok((
                *level,
                match destination {
                    Destination::File(path) => Output::File(files.open(path)?),
                    Destination::Stderr => Output::Stderr,
                    Destination::Syslog(server) => Output::Syslog(Sender::new(server.clone())),
                },
            ))
        });
        Ok(Self::new(outputs.collect::<Result<_, _>>()?))
    }

    /// The log of a process that starts: warnings and worse on stderr as `nginx: [level] text`, and
    /// notices too in `first`, the log of `-e`.
    pub fn startup(first: Option<Arc<LogFile>>) -> Self {
        let file = first.map(|file| (Level::Notice, Output::File(file)));
        Self::new([(Level::Warn, Output::Startup)].into_iter().chain(file).collect())
    }

    /// What it was opened for, by which another thread or process opens the same one.
    pub fn targets(&self) -> Vec<Target> {
        let target = |(level, output): &(Level, Output)| {
            let destination = match output {
                Output::File(file) => Destination::File(file.path().to_owned()),
                Output::Stderr | Output::Startup => Destination::Stderr,
                Output::Syslog(sender) => Destination::Syslog(Arc::clone(sender.server())),
            };
            Target { destination, level: *level }
        };
        self.outputs.iter().map(target).collect()
    }

    fn new(outputs: Rc<[(Level, Output)]>) -> Self {
        let level = outputs.iter().map(|(level, _)| *level).max().unwrap_or(Level::Emerg);
        Self { outputs, level }
    }

    /// Whether a message of this level goes anywhere; ask before making one that costs something.
    pub fn enabled(&self, level: Level) -> bool {
        level <= self.level
    }

    /// A message that belongs to no connection and no system call.
    pub fn say(&self, level: Level, text: fmt::Arguments<'_>) {
        self.write(level, None, text, None, &Context::default());
    }

    /// Writes one line: `connection` is the number after `*`, `errno` the system error that the
    /// text is about.
    pub fn write(
        &self,
        level: Level,
        connection: Option<u64>,
        text: fmt::Arguments<'_>,
        errno: Option<i32>,
        context: &Context<'_>,
    ) {
        self.write_line(level, connection, |line| line.put_message(text, errno, context));
    }

    /// The same with a context that was put into words before.
    pub fn write_with_tail(
        &self,
        level: Level,
        connection: Option<u64>,
        text: fmt::Arguments<'_>,
        errno: Option<i32>,
        tail: &Tail,
    ) {
        self.write_line(level, connection, |line| line.put_message_with_tail(text, errno, tail));
    }

    fn write_line(&self, level: Level, connection: Option<u64>, put_message: impl Fn(&mut Line)) {
        if !self.enabled(level) {
            return;
        }
        let now = unix_seconds();
        let time = LocalTime::at(now);
        let (mut line, mut startup_line) = (Line::new(), None);
        line.put_head(&time, level, connection);
        put_message(&mut line);

        for (_, output) in self.outputs.iter().filter(|(least, _)| level <= *least) {
            match output {
                Output::File(file) => file.write(line.finish(), now),
                Output::Stderr => write_to_stderr(line.finish()),
                Output::Syslog(sender) => {
                    let text = line.finish();
                    let text = text.strip_suffix(b"\n").unwrap_or(text);
                    if let Err(error) = sender.send(level, &time, |out| out.extend_from_slice(text))
                    {
                        self.complain(sender, &error, now);
                    }
                }
                Output::Startup => {
                    let line = startup_line.get_or_insert_with(|| {
                        let mut line = Line::new();
                        line.put_startup_head(level);
                        put_message(&mut line);
                        line
                    });
                    write_to_stderr(line.finish());
                }
            }
        }
    }
}

impl Log {
    /// Says that lines to a syslog server are lost, once a minute for all of them.
    pub fn complain(&self, sender: &Sender, error: &syslog::SendError, now: i64) {
        static LOST: OnceAMinute = OnceAMinute::new();
        if !LOST.is_due(now) {
            return;
        }
        let mut line = Line::new();
        line.put_head(&LocalTime::at(now), error.level(), None);
        let text = format_args!("{}() failed", error.call);
        let server = Context { server: Some(&sender.server().name), ..Context::default() };
        let server = Context { action: Some("logging to syslog"), ..server };
        line.put_message(text, error.source.raw_os_error(), &server);
        // Nothing goes where it may be lost as well.
        let mut is_said = false;
        for (_, output) in self.outputs.iter() {
            match output {
                Output::File(file) => file.write(line.finish(), now),
                Output::Stderr | Output::Startup => write_to_stderr(line.finish()),
                Output::Syslog(_) => continue,
            }
            is_said = true;
        }
        if !is_said {
            write_to_stderr(line.finish());
        }
    }
}

/// What was going on when a message was written; what is `None` is left out of the line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// `connecting to upstream`
    pub action: Option<&'a str>,
    /// The address without the port.
    pub client: Option<&'a str>,
    /// The server's name; before a request is known, the address that was connected to.
    pub server: Option<&'a str>,
    /// The request line.
    pub request: Option<&'a [u8]>,
    /// `http://127.0.0.1:81/x`, `uwsgi://unix:/path:`
    pub upstream: Option<&'a [u8]>,
    /// The `Host` header.
    pub host: Option<&'a [u8]>,
    /// The `Referer` header.
    pub referrer: Option<&'a [u8]>,
    /// What explains the message, at the end of the line: it stays when the rest is too long.
    pub note: Option<fmt::Arguments<'a>>,
}

fn unix_seconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// A closed or full stderr leaves nobody to tell.
fn write_to_stderr(line: &[u8]) {
    let _ = io::stderr().write(line);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CONTEXT: Context<'_> = Context {
        action: Some("connecting to upstream"),
        client: Some("127.0.0.1"),
        server: Some("example.org"),
        request: Some(b"GET /x HTTP/1.1"),
        upstream: Some(b"http://127.0.0.1:81/x"),
        host: Some(b"h"),
        referrer: Some(b"http://r/"),
        note: None,
    };

    fn log_to(files: &Files, targets: &[(&PathBuf, Level)]) -> Log {
        let targets: Vec<_> = targets
            .iter()
            .map(|&(path, level)| Target { destination: Destination::File(path.clone()), level })
            .collect();
        Log::open(&targets, files).unwrap()
    }

    #[test]
    fn names_of_levels() {
        for level in Level::ALL {
            assert_eq!(Level::from_name(&level.to_string()), Some(level));
        }
        assert_eq!(Level::from_name("debug_http"), Some(Level::Debug));
        assert_eq!(Level::from_name("Error"), None);
        assert!(Level::Emerg < Level::Debug);
    }

    #[test]
    fn a_line_with_everything() {
        let directory = file::tests::directory();
        let path = directory.join("error.log");
        let log = log_to(&Files::default(), &[(&path, Level::Error)]);
        log.write(Level::Error, Some(7), format_args!("connect() failed"), Some(111), &CONTEXT);
        log.say(Level::Notice, format_args!("not said"));

        let text = fs::read_to_string(&path).unwrap();
        let (time, rest) = text.split_at(20);
        assert!(time.starts_with("20") && time.ends_with(' '), "{time}");
        let rest = rest.strip_prefix(&format!("[error] {}#", std::process::id())).unwrap();
        let (_thread, message) = rest.split_once(": ").unwrap();
        assert_eq!(
            message,
            "*7 connect() failed (111: Connection refused) while connecting to upstream, \
             client: 127.0.0.1, server: example.org, request: \"GET /x HTTP/1.1\", \
             upstream: \"http://127.0.0.1:81/x\", host: \"h\", referrer: \"http://r/\"\n"
        );
    }

    #[test]
    fn each_target_has_its_own_level() {
        let directory = file::tests::directory();
        let (quiet, loud) = (directory.join("quiet"), directory.join("loud"));
        let log = log_to(&Files::default(), &[(&quiet, Level::Crit), (&loud, Level::Info)]);
        assert!(log.enabled(Level::Info) && !log.enabled(Level::Debug));
        log.say(Level::Info, format_args!("one"));
        log.say(Level::Alert, format_args!("two"));
        assert_eq!(fs::read_to_string(&quiet).unwrap().lines().count(), 1);
        assert_eq!(fs::read_to_string(&loud).unwrap().lines().count(), 2);
    }

    #[test]
    fn the_first_log_takes_notices() {
        let directory = file::tests::directory();
        let file = Files::default().open(&directory.join("first")).unwrap();
        let log = Log::startup(Some(file.clone()));
        log.say(Level::Notice, format_args!("start worker processes"));
        log.say(Level::Info, format_args!("not said"));
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.ends_with(": start worker processes\n"));
        assert_eq!(text.lines().count(), 1);
    }
}
