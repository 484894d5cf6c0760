//! A listening socket of a shard: accepts connections and starts their tasks.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags};

use super::connection::{self, ClientAddress, Connection};
use super::server::AddressId;
use crate::error_log::{self, Level};
use crate::io::select::{Either, Signal, either, in_turn, yield_now};
use crate::io::{Stream, runtime, timer};
use crate::shard::{Generation, Shard};

/// Connections taken in one go before the shard's other tasks run.
const BATCH: usize = 32;
/// How long accepting pauses when there are no descriptors left, as `accept_mutex_delay` does.
const PAUSE: Duration = Duration::from_millis(500);
/// So many pauses are made for connections in the queue of a socket that is to be closed.
const LAST_PAUSES: u32 = 10;

pub struct Listener {
    name: Arc<str>,
    /// Tells its socket from others of the address; copies of a socket have the same.
    inode: u64,
    /// `None` once it is closed: connections that are open still hold the listener.
    socket: RefCell<Option<Rc<Stream>>>,
    /// Which configuration, and which of its addresses, new requests are for.
    binding: RefCell<(Rc<Generation>, AddressId)>,
    end: Cell<Option<End>>,
    closing: Signal,
    /// Raised when this shard's copy of the socket is closed.
    gone: Signal,
}

/// How a listener ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// What is in the queue is taken, and the socket shut down, whoever else has copies of it.
    ShutDown,
    /// What is in the queue is taken, and this shard's copy closed.
    LetGo,
    /// This shard's copy is closed; the queue is left to who has another.
    Abandon,
}

impl Listener {
    pub fn new(
        name: &Arc<str>,
        socket: OwnedFd,
        generation: &Rc<Generation>,
        address: AddressId,
    ) -> io::Result<Self> {
        Ok(Listener {
            name: Arc::clone(name),
            inode: rustix::fs::fstat(&socket)?.st_ino,
            socket: RefCell::new(Some(Rc::new(Stream::listening(socket)?))),
            binding: RefCell::new((Rc::clone(generation), address)),
            end: Cell::new(None),
            closing: Signal::default(),
            gone: Signal::default(),
        })
    }

    /// Whether this is a copy of the socket that it accepts from. An address may have several.
    pub fn has(&self, socket: &OwnedFd) -> bool {
        rustix::fs::fstat(socket).is_ok_and(|stat| stat.st_ino == self.inode)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a request that begins now is answered under.
    pub fn binding(&self) -> (Rc<Generation>, AddressId) {
        let binding = self.binding.borrow();
        (Rc::clone(&binding.0), binding.1)
    }

    pub fn bind(&self, generation: &Rc<Generation>, address: AddressId) {
        *self.binding.borrow_mut() = (Rc::clone(generation), address);
    }

    pub fn is_bound_to(&self, generation: &Rc<Generation>) -> bool {
        Rc::ptr_eq(&self.binding.borrow().0, generation)
    }

    /// Stops accepting. Connections that are open go on under the configuration they know.
    pub fn close(&self, end: End) {
        self.end.set(Some(end));
        self.closing.raise();
    }

    pub fn is_closing(&self) -> bool {
        self.end.get().is_some()
    }

    /// Waits until this shard's copy of the socket is closed, after [`Listener::close`].
    pub async fn gone(&self) {
        self.gone.wait().await;
        // The kernel has it until it has let go of the last wait.
        runtime::settle().await;
    }

    /// Accepts until closed. Readiness is polled and connections are then taken with `accept4`: an
    /// accept left to the ring could complete unseen and leak its descriptor.
    pub async fn accept(self: Rc<Self>, shard: Rc<Shard>) {
        let Some(socket) = self.socket.borrow().clone() else { return };
        while self.end.get().is_none() {
            // A socket that somebody has shut down looks readable for ever.
            let woken = pin!(either(socket.readable_unlimited(), self.closing.wait()));
            match in_turn(woken).await {
                Either::First(Ok(())) => {}
                Either::First(Err(e)) => {
                    shard.log_main(
                        Level::Crit,
                        format_args!("waiting on {} failed: {e}", self.name),
                    );
                    timer::sleep(PAUSE).await;
                }
                Either::Second(()) => break,
            }
            if self.end.get() == Some(End::Abandon) {
                break;
            }
            for _ in 0..BATCH {
                match self.accept_one(&socket, &shard) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(e) => {
                        // Another shard, which has ended already, has shut down what both have: this
                        // one is about to hear of the end.
                        let is_shut_down = Errno::from_io_error(&e) == Some(Errno::INVAL);
                        if is_shut_down
                            && let Either::First(()) =
                                either(self.closing.wait(), timer::sleep(PAUSE)).await
                        {
                            break;
                        }
                        tell_of(&shard, &e);
                        if !is_shut_down {
                            timer::sleep(PAUSE).await;
                        }
                        break;
                    }
                }
            }
        }
        self.take_queued(&socket, &shard).await;
        if self.end.get() == Some(End::ShutDown) {
            let _ = rustix::net::shutdown(socket.fd(), Shutdown::Read);
        }
        self.socket.take();
        drop(socket);
        self.gone.raise();
        shard.has_closed(&self);
    }

    /// Takes what is in the queue of a socket that is to be closed: the kernel has accepted it, so it is
    /// served. Those that are ending make room for it.
    async fn take_queued(self: &Rc<Self>, socket: &Stream, shard: &Rc<Shard>) {
        let mut pauses = 0;
        yield_now().await;
        while self.end.get() != Some(End::Abandon) {
            match self.accept_one(socket, shard) {
                Ok(true) => {}
                Ok(false) => return,
                // Another shard has shut it down.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => return,
                Err(_) if pauses < LAST_PAUSES => {
                    pauses = pauses.saturating_add(1);
                    timer::sleep(PAUSE).await;
                }
                Err(e) => return tell_of(shard, &e),
            }
        }
    }

    /// Takes one connection; false when there is none.
    fn accept_one(self: &Rc<Self>, from: &Stream, shard: &Rc<Shard>) -> io::Result<bool> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, peer) = match rustix::net::acceptfrom_with(from.fd(), flags) {
            Ok(accepted) => accepted,
            Err(Errno::AGAIN) => return Ok(false),
            // The client was gone before it was taken.
            Err(e) if is_of_connection(e) => return Ok(true),
            Err(e) => return Err(e.into()),
        };
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        if !shard.has_room() {
            shard.counters.dropped.add(1);
            let limit = *shard.generation().config.events.worker_connections;
            shard.log_main(Level::Alert, format_args!("{limit} worker_connections are not enough"));
            return Ok(true);
        }
        let client = ClientAddress::from(peer);
        let guard = shard.count_connection();
        let stream = Stream::new(socket)?;
        let tcp_nodelay = {
            let (generation, address) = self.binding();
            let server = generation.http().address(address).default_server;
            let level = generation.server_level(server);
            *generation.http().location(level).settings.core.tcp_nodelay
        };
        if tcp_nodelay && client.ip.is_some() {
            stream.set_nodelay();
        }
        let connection = Connection::new(shard, self, stream, client);
        shard.spawn("connection", connection::serve(connection, guard));
        Ok(true)
    }
}

fn tell_of(shard: &Shard, error: &io::Error) {
    let errno = error_log::Errno::of(error);
    shard.log_main(Level::Crit, format_args!("accept4() failed ({errno})"));
}

/// Whether an error of accept(2) is that of the one connection which would have been taken: Linux hands
/// on what is wrong with its network. With those that wait behind it nothing need be wrong.
fn is_of_connection(error: Errno) -> bool {
    matches!(
        error,
        Errno::CONNABORTED
            | Errno::INTR
            | Errno::NETDOWN
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
            | Errno::TIMEDOUT
            // A firewall's rule.
            | Errno::PERM
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_gone_wrong_keeps_no_other_waiting() {
        for error in [
            Errno::CONNABORTED,
            Errno::INTR,
            Errno::NETDOWN,
            Errno::PROTO,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::NONET,
            Errno::HOSTUNREACH,
            Errno::OPNOTSUPP,
            Errno::NETUNREACH,
            Errno::TIMEDOUT,
            Errno::PERM,
        ] {
            assert!(is_of_connection(error), "{error}");
        }
        // Those say that no connection can be taken.
        for error in [Errno::AGAIN, Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(!is_of_connection(error), "{error}");
        }
    }
}
