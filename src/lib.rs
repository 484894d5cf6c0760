//! ringx: nginx's reverse proxy on an io_uring, thread-per-core engine.
//!
//! Reading order is calling order: a module uses only what stands below it.

pub mod modules;

pub mod http;

pub mod config;
pub mod error_log;
