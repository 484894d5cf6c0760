//! Short sends of tunnels that go out together with others, at the end of a turn.
//!
//! A tunnel has at most one message in the post. While it is there nothing else is done with the
//! tunnel, so that what becomes of the message can be told as if it had been sent at once.

use rustix::io::Errno;

use super::{End, Means, SENDING, Side, Stage, Tunnel};
use crate::counters::TunnelCounters;
use crate::http::count;
use crate::io::batch::{LETTER_MAX, Sends};
use crate::io::poller::Token;

/// Bytes that wait to be sent together, and whose they are.
pub struct Post<'a> {
    pub sends: &'a mut Sends,
    /// The sources of the bytes, by their place in the batch.
    pub sources: &'a mut Vec<Token>,
    /// This tunnel's, by [`Side`].
    pub tokens: [Token; 2],
}

impl Tunnel {
    /// Posts what has just been received, if there is a post and the bytes can wait for it: nothing else
    /// is to be done with them or behind them.
    pub(super) fn post(&mut self, from: Side, bytes: &[u8], post: &mut Option<Post<'_>>) -> bool {
        let way = from.of(&self.ways);
        let is_all = way.stage == Stage::Open && !way.readable && !way.ending;
        let Some(post) = post.as_mut().filter(|_| is_all && self.closing.is_none()) else {
            return false;
        };
        if bytes.is_empty() || bytes.len() > LETTER_MAX || !post.sends.has_room(bytes.len()) {
            return false;
        }
        post.sends.add(self.socket(from.other()), [bytes]);
        post.sources.push(*from.of(&post.tokens));
        self.is_in_post = true;
        true
    }

    /// Whether bytes of it are in the post.
    pub fn is_in_post(&self) -> bool {
        self.is_in_post
    }

    /// So many of the bytes have gone, by the post or without it. True: the receiver has not taken all
    /// of them, and the direction is to be run.
    pub fn has_sent(
        &mut self,
        from: Side,
        bytes: &[u8],
        sent: usize,
        counters: &TunnelCounters,
    ) -> bool {
        self.is_in_post = false;
        let way = self.way(from);
        counters.bytes_copied.add(sent as u64);
        count::add(&mut way.bytes, sent as u64);
        let left = bytes.get(sent..).unwrap_or_default();
        if !left.is_empty() {
            way.keep(left);
        }
        !left.is_empty()
    }

    /// The bytes that were in the post could not be sent.
    pub fn post_failed(&mut self, from: Side, errno: Errno, m: &mut Means<'_>) -> End {
        self.is_in_post = false;
        let end = self.failed(from.other(), SENDING, errno);
        if matches!(end, End::Failed { .. }) {
            self.hear_out(from.other(), m);
        }
        self.settle(from, m);
        if self.is_finished() { self.finish() } else { end }
    }
}
