//! The log module: `access_log` and `log_format`.

mod write;

use std::sync::Arc;
use std::time::Duration;

use crate::config::setting::{List, inherit};
use crate::http::variable::Template;
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
    /// Bytes kept back before writing; zero: a line is written when the shard has no other work,
    /// and always before its connection is closed.
    pub buffer: usize,
    pub flush: Option<Duration>,
    /// `if=`: no line when the value is empty or "0".
    pub condition: Option<Template>,
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
