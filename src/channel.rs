//! The only road between threads: commands from the master to a shard, events back. Nothing of it
//! is on the path of a request.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use crate::http::listener::End;
use crate::http::server::AddressId;
use crate::http::tunnel::parcel::Parcel;
use crate::io::{Buffer, Stream};
use crate::master::Consignment;
use crate::modules::Config;

/// What the master tells a shard.
pub enum Command {
    /// A new configuration, and sockets for every address that it listens on.
    Reload { config: Arc<Config>, listening: Vec<Listening> },
    /// Tunnels that another shard has given away.
    TakeTunnels(Vec<Parcel>),
    /// Give all tunnels away; [`Event::GaveAll`] ends that.
    GiveTunnels,
    /// The shard is not among those of the configuration any more: it finishes what is under way, and
    /// ends. It accepts from its sockets until it is told to close them.
    Leave,
    /// Take what is in the queues of sockets that the configuration does not name, and close them.
    /// Answered with [`Event::Reloaded`] when they are closed.
    CloseLeaving,
    /// Write out what the access logs hold back.
    FlushLogs,
    /// Stop accepting, finish what is under way, end. Listening sockets that other processes have too
    /// are only let go of.
    Quit { end: End, late: LateTunnels },
    /// End what is still under way (`worker_shutdown_timeout`).
    CloseAll,
    /// End now.
    Exit,
}

/// Tunnels on their way to the new binary's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// All that the shards had when they were asked.
    Round,
    /// Those that have begun since the shards were told to end.
    Late,
}

/// What becomes of tunnels that begin when their shard has been told to end: their handshakes were under
/// way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LateTunnels {
    /// They are closed in good order where frames are followed.
    Close,
    /// They go where the others have gone: to the new binary's process.
    Give,
}

/// A listening socket of a shard. There may be several for an address.
pub struct Listening {
    /// `0.0.0.0:80`, `unix:/path`
    pub name: Arc<str>,
    pub address: AddressId,
    /// A descriptor of this shard's own.
    pub socket: OwnedFd,
}

/// A shard's thread. A shard that has died has another one afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub shard: usize,
    /// No other thread has it.
    pub number: u64,
}

/// What a shard, the signal thread or a new binary tells the master.
#[derive(Debug)]
pub enum Event {
    Ready {
        life: Life,
    },
    Reloaded {
        life: Life,
    },
    Ended {
        life: Life,
        failure: Option<String>,
    },
    Signal {
        number: i32,
        sender: Option<u32>,
    },
    /// Tunnels that this shard gives away.
    Tunnels {
        life: Life,
        parcels: Vec<Parcel>,
    },
    /// This shard has given away all tunnels that it had when it was told to.
    GaveAll {
        life: Life,
    },
    /// The new binary's process serves. With the version of the tunnels that it can take over.
    SuccessorReady {
        tunnels: u16,
    },
    /// So many tunnels are the new process's; or why they are not, and who had them.
    Delivered {
        delivery: Delivery,
        count: usize,
        failed: Option<(String, Consignment)>,
    },
    /// Tunnels of the old binary's process.
    Inherited {
        parcels: Vec<Parcel>,
    },
}

/// The master's end of a shard's commands.
pub struct Outbox {
    queue: Arc<Mutex<VecDeque<Command>>>,
    bell: UnixStream,
}

/// The shard's end, before its thread runs.
pub struct Inbox {
    queue: Arc<Mutex<VecDeque<Command>>>,
    bell: UnixStream,
}

/// The shard's end on its ring.
pub struct OpenInbox {
    queue: Arc<Mutex<VecDeque<Command>>>,
    bell: Stream,
    buffer: Buffer,
}

pub fn pair() -> io::Result<(Outbox, Inbox)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let queue = Arc::new(Mutex::new(VecDeque::new()));
    Ok((Outbox { queue: Arc::clone(&queue), bell: ours }, Inbox { queue, bell: theirs }))
}

impl Outbox {
    pub fn send(&self, command: Command) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(command);
        // A full socket means that the shard has rings of the bell to read already.
        let _ = (&self.bell).write(&[0]);
    }

    /// The tunnels that the shard, which has ended, has not taken.
    pub fn take_back(&self) -> Vec<Parcel> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let parcels = queue.drain(..).filter_map(|command| match command {
            Command::TakeTunnels(parcels) => Some(parcels),
            _ => None,
        });
        parcels.flatten().collect()
    }
}

impl Inbox {
    pub fn open(self) -> io::Result<OpenInbox> {
        let bell = Stream::new(self.bell.into())?;
        Ok(OpenInbox { queue: self.queue, bell, buffer: Buffer::with_capacity(1024) })
    }
}

impl OpenInbox {
    /// The next command; [`Command::Exit`] when the master is gone.
    pub async fn next(&mut self) -> Command {
        loop {
            let command = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(command) = command {
                return command;
            }
            self.buffer.clear();
            let (received, buffer) =
                self.bell.recv_unlimited(std::mem::take(&mut self.buffer)).await;
            self.buffer = buffer;
            if !matches!(received, Ok(n) if n > 0) {
                return Command::Exit;
            }
        }
    }
}

/// Wakes a shard, from any other; for what shards wait for among themselves.
#[derive(Debug)]
pub struct Bell(UnixStream);

/// Where a [`Bell`] is heard.
#[derive(Debug)]
pub struct Ear(Stream);

/// A bell, and an ear for it on this shard's ring.
pub fn bell() -> io::Result<(Bell, Ear)> {
    let (ours, theirs) = UnixStream::pair()?;
    theirs.set_nonblocking(true)?;
    Ok((Bell::new(ours)?, Ear(Stream::new(theirs.into())?)))
}

impl Bell {
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Bell(socket))
    }

    pub fn ring(&self) {
        // A full socket means that it has been rung often enough.
        let _ = (&self.0).write(&[0]);
    }
}

impl Ear {
    /// Waits until the bell has been rung since the last time.
    pub async fn heard(&self) {
        if self.0.readable_unlimited().await.is_err() {
            std::future::pending::<()>().await;
        }
        let mut rings = [0; 64];
        while self.0.try_recv(&mut rings).is_ok_and(|n| n == rings.len()) {}
    }
}

/// The way to the master, for shards and the signal thread.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Event>);

impl Events {
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel();
        (Events(sender), receiver)
    }

    pub fn send(&self, event: Event) {
        // Nobody to tell: the master is ending.
        let _ = self.0.send(event);
    }
}
