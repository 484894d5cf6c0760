//! Clients that take their time, for `scripts/bench attack`: what slowloris and its kin do.
//!
//! ```text
//! bench-slow --address 127.0.0.1:80 [--path /bytes/262144] [--heads 5000] [--readers 2000]
//!            [--ramp 5]
//!
//! heads     send a request head that never ends, a byte a second
//! readers   ask for the path, and read at most 1 KiB of the answer a second, through a small window
//! ```
//!
//! They connect over --ramp seconds; when all are there, `ready` is printed, and they go on until
//! standard input ends. One that the proxy ends comes back at once, so there are always as many. At the
//! end one line of JSON says what they did.

#[path = "../descriptors.rs"]
mod descriptors;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// Each client has its turn once in this time.
const PERIOD: Duration = Duration::from_secs(1);
/// Turns are taken in so many groups a period.
const GROUPS: usize = 200;
/// What a reader reads in its turn.
const SIP: usize = 1024;
/// Of a reader's socket, so that the kernel takes little for it.
const RECEIVE_BUFFER: usize = 4096;
const CONNECT_SECONDS_MAX: Duration = Duration::from_secs(10);
/// A line of the head that never ends, over and over.
const LINE: &[u8] = b"X-Slow: 1234567890\r\n";

fn main() -> ExitCode {
    match parse_arguments().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-slow: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    descriptors::raise_limit(options.heads + options.readers + 64);
    let wanted = options.heads + options.readers;
    let per_turn = wanted.div_ceil(options.ramp.max(1) as usize * GROUPS);
    let mut account = Account::default();
    let mut clients = Vec::with_capacity(wanted);

    let over = when_input_ends();
    let start = Instant::now();
    let tick = PERIOD / GROUPS as u32;
    for turn in 0_u32.. {
        let missing = wanted - clients.len();
        for _ in 0..missing.min(per_turn) {
            // Of both kinds in proportion.
            let is_reader = clients.len() * options.readers / wanted
                < (clients.len() + 1) * options.readers / wanted;
            let kind = if is_reader { Kind::Reader } else { Kind::Head { sent: 0 } };
            clients.push(Client::connect(kind, options)?);
        }
        if missing > 0 && clients.len() == wanted {
            println!("ready");
        }
        for client in clients.iter_mut().skip(turn as usize % GROUPS).step_by(GROUPS) {
            client.take_turn(options, &mut account)?;
        }
        if over.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep((start + tick * (turn + 1)).saturating_duration_since(Instant::now()));
    }
    let Account { sent, read, ended } = account;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{{\"heads\": {}, \"readers\": {}, \"seconds\": {seconds:.1}, \"bytes_sent\": {sent}, \
         \"bytes_read\": {read}, \"ended_by_proxy\": {ended}}}",
        options.heads, options.readers
    );
    Ok(())
}

/// Becomes true when standard input has ended: whoever started it is gone, or has enough.
fn when_input_ends() -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        told.store(true, Ordering::Relaxed);
    });
    over
}

/// What they did.
#[derive(Default)]
struct Account {
    sent: u64,
    read: u64,
    ended: u64,
}

struct Client {
    stream: TcpStream,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// `sent` bytes of [`LINE`], over and over.
    Head {
        sent: usize,
    },
    Reader,
}

impl Client {
    /// A new connection, with the first bytes sent.
    fn connect(mut kind: Kind, options: &Options) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(options.address), Type::STREAM, None)?;
        if let Kind::Reader = kind {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        socket.connect_timeout(&options.address.into(), CONNECT_SECONDS_MAX)?;
        let mut stream = TcpStream::from(socket);
        let mut first = format!("GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\n", options.path);
        match &mut kind {
            Kind::Head { sent } => *sent = 0,
            Kind::Reader => first.push_str("\r\n"),
        }
        stream.write_all(first.as_bytes())?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, kind })
    }

    fn take_turn(&mut self, options: &Options, account: &mut Account) -> io::Result<()> {
        let is_open = match &mut self.kind {
            Kind::Head { sent } => {
                let at = *sent % LINE.len();
                *sent += 1;
                // An answer to half a head is the end of it.
                let open = self.stream.write(&LINE[at..=at]).is_ok_and(|count| count == 1);
                account.sent += u64::from(open);
                open && matches!(self.stream.read(&mut [0; SIP]), Err(e) if e.kind() == ErrorKind::WouldBlock)
            }
            Kind::Reader => match self.stream.read(&mut [0; SIP]) {
                Ok(count) => {
                    account.read += count as u64;
                    count > 0
                }
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            },
        };
        if !is_open {
            account.ended += 1;
            *self = Self::connect(self.kind, options)?;
        }
        Ok(())
    }
}

struct Options {
    address: SocketAddr,
    path: String,
    heads: usize,
    readers: usize,
    /// Seconds.
    ramp: u32,
}

fn parse_arguments() -> io::Result<Options> {
    use lexopt::ValueExt;
    use lexopt::prelude::Long;

    fn parse(mut parser: lexopt::Parser) -> Result<Options, lexopt::Error> {
        let mut options = Options {
            address: SocketAddr::from(([127, 0, 0, 1], 80)),
            path: "/bytes/262144".to_owned(),
            heads: 5000,
            readers: 2000,
            ramp: 5,
        };
        while let Some(argument) = parser.next()? {
            match argument {
                Long("address") => options.address = parser.value()?.parse()?,
                Long("path") => options.path = parser.value()?.string()?,
                Long("heads") => options.heads = parser.value()?.parse()?,
                Long("readers") => options.readers = parser.value()?.parse()?,
                Long("ramp") => options.ramp = parser.value()?.parse()?,
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }

    parse(lexopt::Parser::from_env())
        .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))
}
