//! The events module: connections of a shard.

use super::Build;
use crate::config::diagnostic::{Fault, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{Setting, inherit};
use crate::config::value::number;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// How many connections of clients a shard holds.
    pub worker_connections: Setting<usize>,
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: worker_connections);
    }
}

const EVENTS: Contexts = Contexts::EVENTS;
const ONE: Count = Count::Exactly(1);

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("worker_connections", EVENTS, ONE)
        .syntax("number")
        .default("512")
        .doc(
            "How many connections of clients each shard may hold. When few places are left, \
             connections that wait for a request are closed, the oldest first.",
        )
        .differs("nginx counts listening sockets and connections to servers as well")
        .set(|b, args| {
            args.fill(&mut b.events.worker_connections, |args| {
                let text = args.at(0);
                number(text).ok_or_else(|| Fault::new(format!("invalid number \"{text}\"")))
            })
        }),
    Directive::no_effect(
        "accept_mutex",
        EVENTS,
        ONE,
        "each shard has listening sockets of its own",
    )
    .set(|_, args| args.flag().map(drop)),
    Directive::no_effect(
        "accept_mutex_delay",
        EVENTS,
        ONE,
        "each shard has listening sockets of its own",
    )
    .set(|_, args| args.time().map(drop)),
    Directive::no_effect("debug_connection", EVENTS, ONE, "there is no debug log"),
    Directive::no_effect("epoll_events", EVENTS, ONE, "completions come from the ring")
        .set(|_, args| args.number().map(drop)),
    Directive::no_effect("multi_accept", EVENTS, ONE, "accepting is the ring's")
        .set(|_, args| args.flag().map(drop)),
    Directive::no_effect("use", EVENTS, ONE, "the ring is used, or epoll where it is denied").set(
        |_, args| match args.at(0) {
            "epoll" | "poll" | "select" => Ok(()),
            other => fault!("invalid event type \"{other}\""),
        },
    ),
    Directive::no_effect("worker_aio_requests", EVENTS, ONE, "completions come from the ring")
        .set(|_, args| args.number().map(drop)),
];
