//! The log module: `access_log` and `log_format`.

mod frozen;
mod path;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::diagnostic::{Fault, Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, Setting, inherit};
use crate::config::value::{Args, milliseconds, number, seconds, size};
use crate::http::variable::{Names, Template};
use crate::modules::Build;
use crate::syslog::Server;
pub use frozen::{Frozen, Late, LateValues};
pub use write::{AccessLogs, LogWriters, Lost, PackedSink, Sink, write};

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Empty: `access_log off`.
    pub access_log: List<AccessLog>,
    /// `None`: off. For logs with variables in their paths.
    pub open_log_file_cache: Setting<Option<FileCache>>,
}

/// One `access_log` line.
#[derive(Debug, Clone)]
pub struct AccessLog {
    pub to: To,
    pub format: Arc<LogFormat>,
    /// `if=`: no line when the value is empty or "0".
    pub condition: Option<Template>,
}

/// Where lines go.
#[derive(Debug, Clone)]
pub enum To {
    /// An index into `Http::log_files`.
    File(usize),
    /// A path with variables: the file is opened for each line.
    Path(Arc<Template>),
    /// An index into `Http::log_servers`.
    Syslog(usize),
}

/// A file without variables in its path, for all who log to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessFile {
    /// Absolute.
    pub path: PathBuf,
    pub hold: Hold,
}

/// `open_log_file_cache max=N [inactive=…] [min_uses=…] [valid=…];`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCache {
    /// Most files that are kept open in each shard; at least one.
    pub max: usize,
    /// A file that was not used for so long is closed.
    pub inactive: Duration,
    /// Uses within `inactive` from which on a file is kept.
    pub min_uses: usize,
    /// After this time it is asked whether the path still is that of the file.
    pub valid: Duration,
}

/// How long lines are held back before they are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// `buffer=`: bytes; zero: a line is written when the shard has no other work, and always before
    /// its connection is closed.
    pub buffer: usize,
    /// `flush=`: after the first line in the buffer.
    pub flush: Option<Duration>,
    /// `gzip`: what is written is compressed, at this level from 1 to 9.
    pub gzip: Option<u8>,
}

/// `log_format NAME [escape=…] STRING…;`
#[derive(Debug, Clone)]
pub struct LogFormat {
    pub name: Box<str>,
    pub escape: Escape,
    pub line: Template,
}

/// How the values of variables are written; literal text never is escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
        inherit!(self, outer: access_log, open_log_file_cache);
    }
}

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("access_log", Contexts::LEVELS.or(Contexts::LIMIT_EXCEPT), Count::AtLeast(1))
        .syntax(
            "path [format [buffer=size] [gzip[=level]] [flush=time] [if=condition]] | \
             syslog:server=address[,parameter=value] [format [if=condition]] | off",
        )
        .default("logs/access.log combined")
        .doc("Where requests are logged; several may be given.")
        .set(access_log),
    Directive::new("log_format", Contexts::HTTP, Count::AtLeast(2))
        .syntax("name [escape=default | json | none] string ...")
        .doc("The form of a log's lines; `combined` is built in.")
        .set(log_format),
    Directive::new("open_log_file_cache", Contexts::HTTP_SERVER_LOCATION, Count::Between(1, 4))
        .syntax("max=number [inactive=time] [min_uses=number] [valid=time] | off")
        .default("off")
        .doc("How many log files with variables in their paths are kept open, and for how long.")
        .differs("each shard has one such cache; the level that is logged for says how large.")
        .set(|b, args| args.fill(&mut b.level().access_log.open_log_file_cache, file_cache)),
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
                b.level().access_log.access_log.close();
                Ok(())
            }
            Some(other) => fault!("invalid parameter \"{other}\""),
        };
    }
    let to = destination(b, path)?;
    let name = args.all().get(1).map_or("combined", String::as_str);
    let Some(format) = b.http.formats.iter().find(|format| *format.name == *name).cloned() else {
        return fault!("unknown log format \"{name}\"");
    };
    let (hold, condition) = parameters(b, args)?;
    match &to {
        To::File(file) => set_hold(b, *file, hold, path)?,
        To::Path(_) if hold.buffer > 0 => {
            return fault!("buffered logs cannot have variables in name");
        }
        To::Syslog(_) if hold.buffer > 0 => return fault!("logs to syslog cannot be buffered"),
        To::Path(_) | To::Syslog(_) => {}
    }
    b.level().access_log.access_log.add(AccessLog { to, format, condition })
}

/// The first word: `syslog:…`, or a path with or without variables.
fn destination(b: &mut Build, path: &str) -> Outcome<To> {
    if let Some(parameters) = path.strip_prefix("syslog:") {
        let at = b.http.log_servers.len();
        b.http.log_servers.push(Arc::new(Server::parse(parameters).map_err(Fault::new)?));
        return Ok(To::Syslog(at));
    }
    let template = b.http.names.template(path)?;
    if template.has_variables() {
        let whole = b.path(path).to_string_lossy().into_owned();
        return Ok(To::Path(Arc::new(b.http.names.template(&whole)?)));
    }
    let whole = b.log_path(path);
    let known = b.http.log_files.iter().position(|known| known.path == whole);
    let file = known.unwrap_or(b.http.log_files.len());
    if known.is_none() {
        b.http.log_files.push(AccessFile { path: whole, hold: Hold::default() });
    }
    Ok(To::File(file))
}

/// What follows the format.
fn parameters(b: &mut Build, args: Args<'_>) -> Outcome<(Hold, Option<Template>)> {
    /// Bytes held back when `gzip` is given without `buffer=`.
    const GZIP_BUFFER: usize = 64 << 10;
    let mut hold = Hold::default();
    let mut condition = None;
    for parameter in args.from(2) {
        if let Some(text) = parameter.strip_prefix("buffer=") {
            hold.buffer = match size(text) {
                Some(size) if size > 0 => size,
                _ => return fault!("invalid buffer size \"{text}\""),
            };
        } else if let Some(text) = parameter.strip_prefix("flush=") {
            hold.flush = match milliseconds(text) {
                Some(time) if !time.is_zero() => Some(time),
                _ => return fault!("invalid flush time \"{text}\""),
            };
        } else if parameter == "gzip" {
            hold.gzip = Some(1);
        } else if let Some(text) = parameter.strip_prefix("gzip=") {
            hold.gzip = match number(text) {
                Some(level @ 1..=9) => Some(level as u8),
                _ => return fault!("invalid compression level \"{text}\""),
            };
        } else if let Some(text) = parameter.strip_prefix("if=") {
            condition = Some(b.http.names.template(text)?);
        } else {
            return fault!("invalid parameter \"{parameter}\"");
        }
    }
    if hold.gzip.is_some() && hold.buffer == 0 {
        hold.buffer = GZIP_BUFFER;
    }
    if hold.flush.is_some() && hold.buffer == 0 {
        return fault!("no buffer is defined for access_log \"{}\"", args.at(0));
    }
    Ok((hold, condition))
}

/// A file has one buffer, for all who log to it.
fn set_hold(b: &mut Build, file: usize, hold: Hold, path: &str) -> Outcome {
    match b.http.log_files.get_mut(file) {
        Some(file) if hold.buffer > 0 => {
            if file.hold.buffer > 0 && file.hold != hold {
                return fault!("access_log \"{path}\" already defined with conflicting parameters");
            }
            file.hold = hold;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn file_cache(args: Args<'_>) -> Outcome<Option<FileCache>> {
    let mut max = None;
    let mut cache = FileCache {
        max: 0,
        inactive: Duration::from_secs(10),
        min_uses: 1,
        valid: Duration::from_secs(60),
    };
    let mut is_off = false;
    for parameter in args.all() {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let is_valid = match name {
            "max" => {
                max = number(value);
                max.is_some()
            }
            "inactive" => seconds(value).map(|time| cache.inactive = time).is_some(),
            "min_uses" => number(value).map(|uses| cache.min_uses = uses).is_some(),
            "valid" => seconds(value).map(|time| cache.valid = time).is_some(),
            "off" if parameter == "off" => {
                is_off = true;
                true
            }
            _ => false,
        };
        if !is_valid {
            return fault!("invalid \"open_log_file_cache\" parameter \"{parameter}\"");
        }
    }
    match max {
        _ if is_off => Ok(None),
        Some(max) if max > 0 => Ok(Some(FileCache { max, ..cache })),
        _ => fault!("\"open_log_file_cache\" must have \"max\" parameter"),
    }
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
                return fault!("invalid parameter \"{}\"", lone_dollar(string));
            }
            Err(fault) => return Err(fault),
        }
    }
    b.http.formats.push(LogFormat { name: name.into(), escape, line }.into());
    Ok(())
}

/// From the first `$` on that no name follows.
fn lone_dollar(text: &str) -> &str {
    let is_lone = |rest: &&str| {
        let name = rest.strip_prefix('$').unwrap_or(rest);
        let name = name.strip_prefix('{').unwrap_or(name);
        !name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
    };
    text.match_indices('$').filter_map(|(at, _)| text.get(at..)).find(is_lone).unwrap_or(text)
}
