//! ringx: nginx's reverse proxy on an io_uring, thread-per-core engine.
//!
//! Reading order is calling order: a module uses only what stands below it.

pub mod demo;
pub mod options;

pub mod http;

pub mod clock;
pub mod config;
pub mod error_log;
pub mod http1;
pub mod io;
pub mod local_time;
pub mod uwsgi;
