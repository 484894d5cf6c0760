//! ringx's own status module: what every shard has counted, as JSON.

use std::fmt::Write as _;

use crate::config::directive::{Contexts, Count, Directive};
use crate::counters::Counters;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::location::Handler;
use crate::http::phase::{self, Outcome};
use crate::http::request::Request;
use crate::modules::Build;

pub const DIRECTIVES: &[Directive<Build>] =
    &[Directive::new("ringx_status", Contexts::LOCATION, Count::Exactly(0))
        .doc("Answers with what each shard has counted since the start, as JSON.")
        .set(|b, _| {
            b.http.set_handler(Handler::Status);
            Ok(())
        })];

/// The content handler: GET and HEAD of the counters as they are now.
pub async fn serve(c: &Connection, r: &mut Request) -> Result<Outcome, Close> {
    // What it was a moment ago is of no use to anyone.
    let no_store: (&[u8], &[u8]) = (b"Cache-Control", b"no-store");
    let make = || json(&c.shard.counters.all());
    phase::send_made(c, r, "application/json", Some(no_store), make).await
}

/// `{"shards":[{"shard":0,"connections":1,…},…]}`
fn json(shards: &[Counters]) -> String {
    let mut out = String::with_capacity(shards.len().saturating_mul(400));
    out.push_str("{\"shards\":[");
    for (shard, counters) in shards.iter().enumerate() {
        if shard > 0 {
            out.push(',');
        }
        put_shard(shard, counters, &mut out);
    }
    out.push_str("]}\n");
    out
}

fn put_shard(shard: usize, counters: &Counters, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{{\"shard\":{shard}");
    for (name, counter) in counters.named() {
        let _ = write!(out, ",\"{name}\":{}", counter.get());
    }
    out.push_str(",\"tunnels\":{");
    for (n, (name, counter)) in counters.tunnels.named().into_iter().enumerate() {
        let separator = if n == 0 { "" } else { "," };
        let _ = write!(out, "{separator}\"{name}\":{}", counter.get());
    }
    out.push_str("}}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_shards() {
        let shards = [(); 2].map(|()| Counters::default());
        shards[0].requests.set(7);
        shards[0].accepted.set(3);
        shards[0].connections.set(2);
        shards[0].panics.set(1);
        shards[0].restarts.set(9);
        shards[0].reading.set(4);
        shards[0].writing.set(5);
        shards[0].dropped.set(6);
        shards[0].queued.set(8);
        shards[0].lent.set(10);
        shards[0].borrowed.set(11);
        let tunnels = &shards[1].tunnels;
        let counters = [
            &tunnels.open,
            &tunnels.opened,
            &tunnels.bytes_copied,
            &tunnels.bytes_spliced,
            &tunnels.mode_switches,
            &tunnels.pipes_in_use,
            &tunnels.backlog_bytes,
            &tunnels.closes_sent,
            &tunnels.websocket_frames,
            &tunnels.websocket_messages,
            &tunnels.taken_over,
            &tunnels.bytes_per_second,
        ];
        for (n, counter) in (1..).zip(counters) {
            counter.set(n);
        }
        assert_eq!(
            json(&shards),
            concat!(
                r#"{"shards":[{"shard":0,"connections":2,"reading":4,"writing":5,"accepted":3,"#,
                r#""dropped":6,"requests":7,"queued":8,"lent":10,"borrowed":11,"#,
                r#""panics":1,"restarts":9,"#,
                r#""tunnels":{"open":0,"opened":0,"bytes_copied":0,"bytes_spliced":0,"#,
                r#""mode_switches":0,"pipes_in_use":0,"backlog_bytes":0,"closes_sent":0,"#,
                r#""websocket_frames":0,"websocket_messages":0,"taken_over":0,"bytes_per_second":0}},"#,
                r#"{"shard":1,"connections":0,"reading":0,"writing":0,"accepted":0,"#,
                r#""dropped":0,"requests":0,"queued":0,"lent":0,"borrowed":0,"#,
                r#""panics":0,"restarts":0,"#,
                r#""tunnels":{"open":1,"opened":2,"bytes_copied":3,"bytes_spliced":4,"#,
                r#""mode_switches":5,"pipes_in_use":6,"backlog_bytes":7,"closes_sent":8,"#,
                r#""websocket_frames":9,"websocket_messages":10,"taken_over":11,"bytes_per_second":12}}]}"#,
                "\n"
            )
        );
    }
}
