//! A tunnel between two socket pairs, run by hand.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::http::modules::websocket::IdleCounts;

/// A tunnel between two socket pairs, run by hand.
struct Table {
    tunnel: Tunnel,
    client: UnixStream,
    server: UnixStream,
    scratch: Box<[u8; SCRATCH]>,
    pipes: Pipes,
    counters: TunnelCounters,
    now_ms: u64,
    /// Sides whose output was asked for.
    blocked: Vec<Side>,
}

const LIMITS: Limits = Limits {
    silence_ms: 60_000,
    untaken_ms: [60_000, 60_000],
    idle: None,
    answer_ms: 5000,
    close_spread_ms: Some(10_000),
    half_close: true,
    reset_timedout: false,
};

impl Table {
    fn new(follows: bool, limits: Limits) -> Self {
        let (client, ours) = UnixStream::pair().unwrap();
        let (theirs, server) = UnixStream::pair().unwrap();
        for socket in [&client, &ours, &theirs, &server] {
            socket.set_nonblocking(true).unwrap();
        }
        Table {
            tunnel: Tunnel::new(ours.into(), theirs.into(), limits, follows, follows, 0),
            client,
            server,
            scratch: vec![0; SCRATCH].try_into().unwrap(),
            pipes: Pipes::default(),
            counters: TunnelCounters::default(),
            now_ms: 0,
            blocked: Vec::new(),
        }
    }

    fn step(
        &mut self,
        run: impl Fn(&mut Tunnel, &mut Means<'_>) -> Result<Ran, End>,
    ) -> Result<(), End> {
        loop {
            let mut means = Means {
                scratch: &mut self.scratch,
                pipes: &mut self.pipes,
                counters: &self.counters,
                post: None,
                now_ms: self.now_ms,
            };
            match run(&mut self.tunnel, &mut means)? {
                Ran { waits: Waits::Turn, .. } => {}
                Ran { from, waits: Waits::Output } => {
                    self.blocked.push(from.other());
                    return Ok(());
                }
                Ran { .. } => return Ok(()),
            }
        }
    }

    /// Both sides are reported readable, and writable if that was asked for.
    fn turn(&mut self) -> Result<(), End> {
        for side in std::mem::take(&mut self.blocked) {
            self.step(|tunnel, means| tunnel.on_output(side, means))?;
        }
        for side in Side::BOTH {
            self.step(|tunnel, means| tunnel.on_input(side, true, means))?;
            self.step(|tunnel, means| tunnel.run(side, means))?;
        }
        Ok(())
    }

    fn time(&mut self, now_ms: u64) -> Result<(), End> {
        self.now_ms = now_ms;
        if self.tunnel.on_time(now_ms)? {
            self.turn()?;
        }
        Ok(())
    }
}

/// What there is to read.
fn read(socket: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        other => drop(other.unwrap()),
    }
    bytes
}

fn text(payload: &[u8], masked: bool) -> Vec<u8> {
    let mut frame = vec![0x81];
    let mask = if masked { 0x80 } else { 0 };
    match payload.len() {
        n @ ..126 => frame.push(mask | n as u8),
        n @ ..65536 => {
            frame.push(mask | 0x7e);
            frame.extend((n as u16).to_be_bytes());
        }
        n => {
            frame.push(mask | 0x7f);
            frame.extend((n as u64).to_be_bytes());
        }
    }
    if masked {
        frame.extend([0; 4]);
    }
    frame.extend(payload);
    frame
}

#[test]
fn bytes_go_both_ways_and_ends_are_passed_on() {
    let mut table = Table::new(false, LIMITS);
    table.client.write_all(b"question").unwrap();
    table.turn().unwrap();
    assert_eq!(read(&mut table.server), b"question");
    table.client.shutdown(std::net::Shutdown::Write).unwrap();
    table.turn().unwrap();
    table.server.write_all(b"answer").unwrap();
    table.turn().unwrap();
    assert_eq!(read(&mut table.client), b"answer");
    table.server.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(table.turn(), Err(End::Finished)));
    assert_eq!(table.tunnel.bytes_from(Side::Client), 8);
    assert_eq!(table.tunnel.bytes_from(Side::Upstream), 6);
}

#[test]
fn without_half_close_the_first_end_ends_it() {
    let mut table = Table::new(false, Limits { half_close: false, ..LIMITS });
    table.client.write_all(b"last").unwrap();
    table.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(table.turn(), Err(End::Finished)));
    assert_eq!(read(&mut table.server), b"last");
}

/// A stalled reader stops the writer; whatever was received arrives once it reads again.
fn stall(follows: bool, sent: &[u8]) {
    let mut table = Table::new(follows, LIMITS);
    let mut rest = sent;
    let mut quiet = 0;
    while quiet < 3 {
        match table.client.write(rest) {
            Ok(n) => {
                rest = &rest[n..];
                quiet = 0;
            }
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                quiet += 1;
            }
        }
        table.turn().unwrap();
    }
    assert!(!rest.is_empty(), "it was not stopped");
    assert!(table.counters.backlog_bytes.get() > 0);
    assert!(table.counters.backlog_bytes.get() <= pipe::CAPACITY as u64);
    let mut arrived = Vec::new();
    while arrived.len() < sent.len() {
        arrived.extend(read(&mut table.server));
        if let Ok(n) = table.client.write(rest) {
            rest = &rest[n..];
        }
        table.turn().unwrap();
    }
    assert!(arrived == sent, "bytes differ");
    assert_eq!(table.counters.backlog_bytes.get(), 0);
    assert_eq!(table.counters.pipes_in_use.get(), 0);
    let counters = &table.counters;
    assert_eq!(counters.bytes_copied.get() + counters.bytes_spliced.get(), sent.len() as u64);
    assert!(counters.bytes_spliced.get() > 0 && counters.mode_switches.get() > 0);
}

#[test]
fn a_stalled_reader_stops_the_writer() {
    let bytes: Vec<u8> = (0..4 << 20).map(|n: u32| (n.wrapping_mul(31) >> 3) as u8).collect();
    stall(false, &bytes);
}

#[test]
fn a_stalled_reader_of_frames_stops_the_writer() {
    let payload: Vec<u8> = (0..100_000).map(|n: u32| (n.wrapping_mul(7) >> 2) as u8).collect();
    let mut frames = Vec::new();
    for n in 0..60 {
        let small = n % 7 == 3;
        frames.extend(text(if small { &payload[..n] } else { &payload[n..] }, true));
    }
    stall(true, &frames);
}

#[test]
fn small_traffic_after_bulk_is_copied_and_holds_no_pipe() {
    let mut table = Table::new(false, LIMITS);
    let bulk = vec![7; 100_000];
    let mut sent = 0;
    while table.counters.bytes_spliced.get() == 0 {
        sent += table.client.write(&bulk).unwrap_or(0);
        table.turn().unwrap();
        read(&mut table.server);
        assert!(sent < 100 << 20, "never spliced");
    }
    table.turn().unwrap();
    read(&mut table.server);
    table.turn().unwrap();
    for _ in 0..8 {
        table.client.write_all(b"x").unwrap();
        table.turn().unwrap();
        assert_eq!(read(&mut table.server), b"x");
    }
    assert_eq!(table.counters.mode_switches.get(), 2, "there and back");
    assert_eq!(table.counters.pipes_in_use.get(), 0);
}

#[test]
fn a_quit_closes_between_two_frames() {
    let mut table = Table::new(true, LIMITS);
    let frame = text(b"hello", false);
    table.server.write_all(&frame[..3]).unwrap();
    table.turn().unwrap();
    table.tunnel.close_at(100);
    assert_eq!(table.tunnel.deadline_ms(table.now_ms), 100);
    table.time(100).unwrap();
    // The server's side of the frame is complete: it gets its Close, masked, at once.
    let close = read(&mut table.server);
    assert_eq!((close[0], close[1], close.len()), (0x88, 0x82, 8));
    let code = [close[6] ^ close[2], close[7] ^ close[3]];
    assert_eq!(u16::from_be_bytes(code), frame::GOING_AWAY);
    assert_eq!(read(&mut table.client), &frame[..3], "and the client has to wait");
    // What follows the frame is not passed on any more.
    table.server.write_all(&frame[3..]).unwrap();
    table.server.write_all(&text(b"late", false)).unwrap();
    table.turn().unwrap();
    let mut expected = frame[3..].to_vec();
    expected.extend([0x88, 2, 0x03, 0xe9]);
    assert_eq!(read(&mut table.client), expected);
    assert_eq!(table.counters.closes_sent.get(), 2);
    // Both answer, the client behind a message that came too late.
    table.client.write_all(&text(b"late", true)).unwrap();
    table.client.write_all(&frame::close_frame(1001, Some([0; 4]))).unwrap();
    table.turn().unwrap();
    assert_eq!(read(&mut table.server), b"");
    table.server.write_all(&frame::close_frame(1001, None)).unwrap();
    assert!(matches!(table.turn(), Err(End::Closed)));
    let metrics = table.tunnel.metrics().unwrap();
    assert_eq!(metrics.from_upstream.close_code, Some(1001));
}

/// A close that begins in the middle of a frame of the server's; `rest` follows that frame.
fn close_before(rest: &[&[u8]]) -> (Vec<u8>, Table) {
    let mut table = Table::new(true, LIMITS);
    let frame = text(b"hello", false);
    table.server.write_all(&frame[..3]).unwrap();
    table.turn().unwrap();
    table.tunnel.close_at(0);
    table.time(0).unwrap();
    let mut bytes = frame[3..].to_vec();
    for piece in rest {
        bytes.extend_from_slice(piece);
        table.server.write_all(&bytes).unwrap();
        table.turn().unwrap();
        bytes.clear();
    }
    let mut arrived = read(&mut table.client);
    assert_eq!(arrived[..frame.len()], frame);
    (arrived.split_off(frame.len()), table)
}

#[test]
fn nothing_of_the_frame_behind_a_close_is_passed_on() {
    let late = text(b"too late", false);
    let (arrived, _) = close_before(&[&late[..4], &late[4..], &late]);
    assert_eq!(arrived, [0x88, 2, 0x03, 0xe9]);
}

#[test]
fn a_close_of_the_server_behind_the_frame_is_replaced_by_ours() {
    let theirs = frame::close_frame(1000, None);
    let (arrived, mut table) = close_before(&[&theirs]);
    assert_eq!(arrived, [0x88, 2, 0x03, 0xe9], "one, and ours");
    table.client.write_all(&frame::close_frame(1001, Some([0; 4]))).unwrap();
    assert!(matches!(table.turn(), Err(End::Closed)));
}

#[test]
fn a_close_that_has_passed_is_not_followed_by_another() {
    let mut table = Table::new(true, LIMITS);
    let theirs = frame::close_frame(1000, None);
    table.server.write_all(&theirs).unwrap();
    table.turn().unwrap();
    table.tunnel.close_at(0);
    table.time(0).unwrap();
    assert_eq!(read(&mut table.client), &theirs[..]);
    assert_eq!(read(&mut table.server).len(), 8, "the other side gets its own");
}

#[test]
fn a_large_frame_puts_the_end_off() {
    let mut table = Table::new(true, LIMITS);
    let frame = text(&vec![1; 60_000], false);
    table.server.write_all(&frame[..30_000]).unwrap();
    table.turn().unwrap();
    table.tunnel.close_at(0);
    table.time(0).unwrap();
    table.now_ms = 4000;
    table.server.write_all(&frame[30_000..50_000]).unwrap();
    table.turn().unwrap();
    assert_eq!(table.tunnel.deadline_ms(table.now_ms), 9000);
    table.time(5000).unwrap();
    table.server.write_all(&frame[50_000..]).unwrap();
    table.turn().unwrap();
    assert!(read(&mut table.client).ends_with(&[1, 0x88, 2, 0x03, 0xe9]));
    assert_eq!(table.tunnel.deadline_ms(5000), 10_000, "for the answer");
}

#[test]
fn a_close_that_nobody_answers_ends_in_time() {
    let mut table = Table::new(true, LIMITS);
    table.tunnel.close_at(0);
    table.time(0).unwrap();
    table.time(4999).unwrap();
    assert_eq!(table.tunnel.deadline_ms(table.now_ms), 5000);
    assert!(matches!(table.time(5000), Err(End::Closed)));
}

#[test]
fn bytes_that_are_no_frames_are_left_alone_by_a_quit() {
    let mut table = Table::new(true, LIMITS);
    table.client.write_all(b"not a frame").unwrap();
    table.turn().unwrap();
    table.tunnel.close_at(0);
    table.time(0).unwrap();
    assert_eq!(read(&mut table.server), b"not a frame");
    assert_eq!(read(&mut table.client), b"");
    assert_eq!(table.tunnel.deadline_ms(table.now_ms), 60_000);
}

#[test]
fn pings_are_silence_or_not() {
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    for (counts, ends_at) in [(IdleCounts::Data, 1000), (IdleCounts::Any, 1900)] {
        let idle = Some(IdleTimeout { time: Duration::from_secs(1), counts });
        let mut table = Table::new(true, Limits { idle, ..LIMITS });
        table.now_ms = 900;
        table.client.write_all(&ping).unwrap();
        table.turn().unwrap();
        assert_eq!(read(&mut table.server), ping);
        assert_eq!(table.tunnel.deadline_ms(table.now_ms), ends_at);
        table.time(ends_at - 1).unwrap();
        assert_eq!(read(&mut table.client), b"");
        table.time(ends_at).unwrap();
        assert_eq!(read(&mut table.client), [0x88, 2, 0x03, 0xe8], "1000");
    }
}

#[test]
fn silence_and_a_reader_that_takes_nothing() {
    let mut table = Table::new(false, Limits { untaken_ms: [500, 300], ..LIMITS });
    assert!(matches!(table.time(60_000), Err(End::Silent)));
    let mut table = Table::new(false, Limits { untaken_ms: [500, 300], ..LIMITS });
    while table.blocked.is_empty() {
        table.client.write_all(&[0; 1000]).unwrap();
        table.turn().unwrap();
    }
    assert_eq!(table.tunnel.deadline_ms(table.now_ms), 300);
    assert!(table.time(299).is_ok());
    assert!(matches!(table.time(300), Err(End::NotTaken(Side::Upstream))));
}

/// The server has sent more than the client takes, at this moment.
fn blocked(follows: bool, limits: Limits, at_ms: u64) -> Table {
    let mut table = Table::new(follows, limits);
    table.now_ms = at_ms;
    while table.blocked.is_empty() {
        table.server.write_all(&text(&[0; 1000], false)).unwrap();
        table.turn().unwrap();
    }
    table
}

#[test]
fn silence_is_not_counted_while_a_slow_reader_is_waited_for() {
    let idle = IdleTimeout { time: Duration::from_millis(200), counts: IdleCounts::Data };
    let limits = Limits { silence_ms: 100, idle: Some(idle), ..LIMITS };
    let mut table = blocked(true, limits.clone(), 10);
    // It is looked again: the reader may have taken all of it by then.
    assert_eq!(table.tunnel.deadline_ms(10), 110);
    for at_ms in [110, 210, 1000] {
        table.time(at_ms).unwrap();
        assert_eq!(table.tunnel.deadline_ms(at_ms), at_ms + 100);
    }
    read(&mut table.client);
    table.turn().unwrap();
    assert_eq!(table.tunnel.deadline_ms(1000), 1100);
    assert!(matches!(table.time(1100), Err(End::Silent)));
    // What it took was data.
    let mut table = blocked(true, Limits { silence_ms: 60_000, ..limits }, 10);
    table.time(1000).unwrap();
    read(&mut table.client);
    table.turn().unwrap();
    assert_eq!(table.tunnel.deadline_ms(1000), 1200);
    table.time(1200).unwrap();
    assert!(read(&mut table.client).ends_with(&[0x88, 2, 0x03, 0xe8]), "1000");
}

#[test]
fn whoever_speaks_puts_off_that_it_takes_nothing() {
    let mut table = blocked(false, Limits { untaken_ms: [500, 300], ..LIMITS }, 10);
    assert_eq!(table.tunnel.deadline_ms(10), 510);
    table.now_ms = 400;
    table.client.write_all(b"I am here").unwrap();
    table.turn().unwrap();
    assert!(table.time(899).is_ok());
    assert!(matches!(table.time(900), Err(End::NotTaken(Side::Client))));
}

#[test]
fn who_speaks_and_does_not_read_is_not_waited_for_at_the_end() {
    let mut table = blocked(true, LIMITS, 10);
    table.tunnel.close_at(100);
    for at_ms in (100..60_000).step_by(1000) {
        table.time(at_ms).unwrap();
        table.client.write_all(&text(b"I am here", true)).unwrap();
        table.turn().unwrap();
    }
    assert!(matches!(table.time(60_010), Err(End::NotTaken(Side::Client))));
}

#[test]
fn the_last_moment() {
    let mut table = Table::new(true, LIMITS);
    table
        .step(|tunnel, means| {
            tunnel.close_now(frame::GOING_AWAY, means);
            Ok(Ran { from: Side::Client, waits: Waits::Nothing })
        })
        .unwrap();
    assert_eq!(read(&mut table.client), [0x88, 2, 0x03, 0xe9]);
    assert_eq!(read(&mut table.server).len(), 8);
}

#[test]
fn what_was_posted_and_not_taken_goes_on() {
    let mut table = Table::new(false, LIMITS);
    assert!(!table.tunnel.has_sent(Side::Client, b"taken", 5, &table.counters));
    assert!(table.tunnel.has_sent(Side::Client, b"hello", 2, &table.counters));
    table.step(|tunnel, means| tunnel.run(Side::Client, means)).unwrap();
    assert_eq!(read(&mut table.server), b"llo");
    assert_eq!(table.tunnel.bytes_from(Side::Client), 10);
}

#[test]
fn a_post_to_who_has_left_is_the_end_and_no_failure() {
    for half_close in [false, true] {
        let mut table = Table::new(false, Limits { half_close, ..LIMITS });
        table.client.write_all(b"last words").unwrap();
        table.client.shutdown(std::net::Shutdown::Write).unwrap();
        let failed =
            table.step(|tunnel, means| Err(tunnel.post_failed(Side::Upstream, Errno::PIPE, means)));
        match failed {
            Err(End::Finished) => assert!(!half_close),
            // Its own side may go on, and cannot.
            Err(End::Failed { side: Side::Client, .. }) => assert!(half_close),
            other => panic!("{other:?}"),
        }
        assert_eq!(read(&mut table.server), b"last words");
    }
}
