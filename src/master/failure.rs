//! Everything that can keep a configuration from being used, in nginx's words.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::diagnostic::Diagnostic;
use crate::error_log::{Errno, Level, OpenError};
use crate::os::{DropError, UnknownIdentity};

#[derive(Debug, Error)]
pub enum Failure {
    #[error("{}", said(.0))]
    Configuration(Diagnostic),
    /// A log or the pid file.
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Identity(#[from] UnknownIdentity),
    #[error(transparent)]
    Privileges(#[from] DropError),
    /// An operation on a file: `mkdir() "/p/proxy_temp" failed (13: Permission denied)`.
    #[error("{call}() \"{}\" failed ({})", path.display(), Errno::of(source))]
    Path { call: &'static str, path: PathBuf, source: io::Error },
    #[error("chown(\"{}\", {user}) failed ({})", path.display(), Errno::of(source))]
    Chown { path: PathBuf, user: u32, source: io::Error },
    /// An operation on a listening socket: `bind() to 0.0.0.0:80 failed (13: Permission denied)`.
    #[error("{call}() {name} failed ({})", Errno::of(source))]
    Socket { call: &'static str, name: String, source: io::Error },
    #[error("bind() to {name} failed ({})", Errno::of(source))]
    Bind { name: String, source: io::Error },
    #[error("listen() to {name}, backlog {backlog} failed ({})", Errno::of(source))]
    Listen { name: String, backlog: i32, source: io::Error },
    /// Every address that was busy has been named before.
    #[error("still could not bind()")]
    StillBusy,
    #[error("{call}() failed ({})", Errno::of(source))]
    Call { call: &'static str, source: io::Error },
}

impl Failure {
    pub fn path(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { call, path, source }
    }

    pub fn socket(call: &'static str, name: &str) -> impl FnOnce(io::Error) -> Self {
        let name = name.to_owned();
        move |source| Self::Socket { call, name, source }
    }

    pub fn call(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Call { call, source }
    }

    /// How severe nginx calls it.
    pub fn level(&self) -> Level {
        match self {
            Self::Configuration(diagnostic) => diagnostic.level,
            _ => Level::Emerg,
        }
    }

    /// Whether somebody else listens on the address: worth another try.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Bind { source, .. } | Self::Listen { source, .. } => {
                source.kind() == io::ErrorKind::AddrInUse
            }
            _ => false,
        }
    }
}

/// The text of a diagnostic with its place; the level stands elsewhere in the line.
pub fn said(diagnostic: &Diagnostic) -> String {
    match &diagnostic.place {
        Some(place) => format!("{} in {place}", diagnostic.text),
        None => diagnostic.text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_nginxs() {
        let busy = || io::Error::from_raw_os_error(libc::EADDRINUSE);
        let bind = Failure::Bind { name: "0.0.0.0:80".to_owned(), source: busy() };
        assert_eq!(bind.to_string(), "bind() to 0.0.0.0:80 failed (98: Address already in use)");
        assert!(bind.is_busy());
        let socket = Failure::socket("socket", "[::]:80")(busy());
        assert_eq!(socket.to_string(), "socket() [::]:80 failed (98: Address already in use)");
        assert!(!socket.is_busy());
        let path = Failure::path("mkdir", "/p")(io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(path.to_string(), "mkdir() \"/p\" failed (13: Permission denied)");
    }
}
