//! The `stub_status` module: how many connections and requests there are and were, in all shards
//! together.

use std::fmt::Write as _;

use crate::config::directive::{Contexts, Count, Directive};
use crate::counters::Counters;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::location::Handler;
use crate::http::phase::{self, Outcome};
use crate::http::request::Request;
use crate::modules::Build;

pub const DIRECTIVES: &[Directive<Build>] = &[Directive::new(
    "stub_status",
    Contexts::SERVER.or(Contexts::LOCATION),
    Count::Between(0, 1),
)
.doc("Answers with the numbers of connections and requests; a word may follow, for old times.")
.set(|b, _| {
    b.http.set_handler(Handler::StubStatus);
    Ok(())
})];

/// The content handler: GET and HEAD of the numbers as they are now.
pub async fn serve(c: &Connection, r: &mut Request) -> Result<Outcome, Close> {
    phase::send_made(c, r, "text/plain", None, || page(&c.shard.counters.all())).await
}

/// Client connections by what they are at: `$connections_…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    Active,
    /// A request's head is being received.
    Reading,
    /// A request is being answered; tunnels are among these.
    Writing,
    /// Nothing has come since the last answer, or since the connection was accepted.
    Waiting,
}

impl Connections {
    pub fn count(self, shards: &[Counters]) -> u64 {
        let sum = |of: fn(&Counters) -> u64| shards.iter().map(of).sum::<u64>();
        let active = || sum(|shard| shard.connections.get());
        let reading = || sum(|shard| shard.reading.get());
        let writing = || sum(|shard| shard.writing.get());
        match self {
            Connections::Active => active(),
            Connections::Reading => reading(),
            Connections::Writing => writing(),
            // Numbers of other shards may be of different moments.
            Connections::Waiting => active().saturating_sub(reading()).saturating_sub(writing()),
        }
    }
}

fn page(shards: &[Counters]) -> String {
    let sum = |of: fn(&Counters) -> u64| shards.iter().map(of).sum::<u64>();
    let count = |which: Connections| which.count(shards);
    let handled = sum(|shard| shard.accepted.get());
    let accepts = handled.saturating_add(sum(|shard| shard.dropped.get()));
    let requests = sum(|shard| shard.requests.get());
    let mut page = String::with_capacity(160);
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "Active connections: {} \n\
         server accepts handled requests\n \
         {accepts} {handled} {requests} \n\
         Reading: {} Writing: {} Waiting: {} \n",
        count(Connections::Active),
        count(Connections::Reading),
        count(Connections::Writing),
        count(Connections::Waiting),
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_shards() {
        let shards = [(); 2].map(|()| Counters::default());
        shards[0].connections.set(7);
        shards[0].accepted.set(15);
        shards[0].requests.set(20);
        shards[0].writing.set(1);
        shards[0].reading.set(2);
        shards[1].connections.set(2);
        shards[1].accepted.set(2);
        shards[1].dropped.set(3);
        shards[1].requests.set(5);
        assert_eq!(
            page(&shards),
            "Active connections: 9 \nserver accepts handled requests\n 20 17 25 \n\
             Reading: 2 Writing: 1 Waiting: 6 \n"
        );
    }
}
