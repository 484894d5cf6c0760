//! ringx: nginx's reverse proxy on an `io_uring`, thread-per-core engine.
//!
//! Reading order is calling order: a module uses only what stands below it.

// No panic is reachable from the network: what could panic is proven where it stands, and fuzzed.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::unimplemented,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

pub mod fuzz;

pub mod demo;
pub mod options;

pub mod modules;

pub mod master;
pub mod shard;

pub mod channel;

pub mod http;

pub mod config;

pub mod http1;
pub mod proxy_protocol;
pub mod uwsgi;

pub mod clock;
pub mod counters;
pub mod error_log;
pub mod io;
pub mod local_time;
pub mod memory;
pub mod os;
pub mod resolver;
pub mod syslog;

/// What `-v`, `Server:` and the built-in pages say.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
