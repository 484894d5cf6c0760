//! The log module: `access_log` and `log_format`.

mod frozen;
mod write;

use std::sync::Arc;
use std::time::Duration;

use crate::config::diagnostic::{Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, inherit};
use crate::config::value::{Args, milliseconds, size};
use crate::http::variable::{Names, Template};
use crate::modules::Build;
pub use frozen::{Frozen, Late, LateValues};
pub use write::{LogWriter, LogWriters, write};

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Empty: `access_log off`.
    pub access_log: List<AccessLog>,
}

/// One `access_log` line.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Index into `Http::log_files`.
    pub file: usize,
    pub format: Arc<LogFormat>,
    pub hold: Hold,
    /// `if=`: no line when the value is empty or "0".
    pub condition: Option<Template>,
}

/// How long lines are held back before they are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hold {
    /// `buffer=`: bytes; zero: a line is written when the shard has no other work, and always before
    /// its connection is closed.
    pub buffer: usize,
    /// `flush=`: after the first line in the buffer.
    pub flush: Option<Duration>,
}

/// `log_format NAME [escape=…] STRING…;`
#[derive(Debug, Clone)]
pub struct LogFormat {
    pub name: Box<str>,
    pub escape: Escape,
    pub line: Template,
}

/// How the values of variables are written; literal text never is escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// `\xHH` for bytes below 0x20, `"`, `\` and from 0x7f on; a missing value is `-`.
    Default,
    /// JSON string escapes; a missing value is empty.
    Json,
    /// As it is; a missing value is empty.
    None,
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: access_log);
    }
}

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("access_log", Contexts::LEVELS, Count::AtLeast(1))
        .syntax("path [format [buffer=size] [flush=time] [if=condition]] | off")
        .default("logs/access.log combined")
        .doc("Where requests are logged; several may be given.")
        .differs("no syslog, no `gzip`, no variables in the path.")
        .set(access_log),
    Directive::new("log_format", Contexts::HTTP, Count::AtLeast(2))
        .syntax("name [escape=default | json | none] string ...")
        .doc("The form of a log's lines; `combined` is built in.")
        .set(log_format),
    Directive::no_effect(
        "open_log_file_cache",
        Contexts::HTTP_SERVER_LOCATION,
        Count::AtLeast(1),
        "log files have no variables in their names",
    ),
];

/// The format that is always there.
pub fn combined(names: &mut Names) -> Outcome<LogFormat> {
    let line = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \
                \"$http_referer\" \"$http_user_agent\"";
    Ok(LogFormat { name: "combined".into(), escape: Escape::Default, line: names.template(line)? })
}

fn access_log(b: &mut Build, args: Args<'_>) -> Outcome {
    let path = args.at(0);
    if path == "off" {
        return match args.all().get(1) {
            None => {
                b.level().access_log.access_log.set_empty();
                Ok(())
            }
            Some(other) => fault!("invalid parameter \"{other}\""),
        };
    }
    if path.starts_with("syslog:") {
        return fault!("\"access_log\" to syslog is not supported");
    }
    if b.http.names.template(path)?.has_variables() {
        return fault!("variables in the name of \"access_log\" are not supported");
    }
    let name = args.all().get(1).map_or("combined", String::as_str);
    let Some(format) = b.http.formats.iter().find(|format| *format.name == *name).cloned() else {
        return fault!("unknown log format \"{name}\"");
    };
    let mut log = AccessLog { file: 0, format, hold: Hold::default(), condition: None };
    for parameter in args.from(2) {
        if let Some(text) = parameter.strip_prefix("buffer=") {
            log.hold.buffer = match size(text) {
                Some(size) if size > 0 => size,
                _ => return fault!("invalid buffer size \"{text}\""),
            };
        } else if let Some(text) = parameter.strip_prefix("flush=") {
            log.hold.flush = match milliseconds(text) {
                Some(time) if !time.is_zero() => Some(time),
                _ => return fault!("invalid flush time \"{text}\""),
            };
        } else if let Some(text) = parameter.strip_prefix("if=") {
            log.condition = Some(b.http.names.template(text)?);
        } else if parameter == "gzip" || parameter.starts_with("gzip=") {
            return fault!("\"gzip\" of \"access_log\" is not supported");
        } else {
            return fault!("invalid parameter \"{parameter}\"");
        }
    }
    if log.hold.flush.is_some() && log.hold.buffer == 0 {
        return fault!("no buffer is defined for access_log \"{path}\"");
    }
    let file = b.path(path);
    let known = b.http.log_files.iter().position(|known| *known == file);
    log.file = known.unwrap_or(b.http.log_files.len());
    if known.is_none() {
        b.http.log_files.push(file);
    }
    b.level().access_log.access_log.add(log)
}

fn log_format(b: &mut Build, args: Args<'_>) -> Outcome {
    let name = args.at(0);
    if b.http.formats.iter().any(|format| *format.name == *name) {
        return fault!("duplicate \"log_format\" name \"{name}\"");
    }
    let (escape, strings) = match args.at(1).strip_prefix("escape=") {
        None => (Escape::Default, args.from(1)),
        Some("default") => (Escape::Default, args.from(2)),
        Some("json") => (Escape::Json, args.from(2)),
        Some("none") => (Escape::None, args.from(2)),
        Some(other) => return fault!("unknown log format escaping \"{other}\""),
    };
    let mut line = Template::default();
    for string in strings {
        match b.http.names.template(string) {
            Ok(part) => line.parts.extend(part.parts),
            // The log module has its own word for a lone `$`.
            Err(fault) if fault.text == "invalid variable name" => {
                return fault!("invalid parameter \"{string}\"");
            }
            Err(fault) => return Err(fault),
        }
    }
    b.http.formats.push(LogFormat { name: name.into(), escape, line }.into());
    Ok(())
}
