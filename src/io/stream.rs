//! A connected stream socket, TCP or unix, client's or upstream's.

use std::cell::{Cell, UnsafeCell};
use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use monoio::buf::IoBufMut;
use monoio::io::AsyncReadRent;
use monoio::net::TcpStream;
use rustix::event::epoll;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::buffer::Buffer;
use super::outbox;
use super::timer::{Expired, Timer, Wait};
use crate::os;

/// Whether an address is a path or an IP address is all the kernel needs to know of a peer.
#[derive(Debug, Clone)]
pub enum Address {
    Inet(std::net::SocketAddr),
    Unix(std::path::PathBuf),
}

/// How a wait on a socket can end badly.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("timed out")]
    TimedOut,
    /// The shard is ending.
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Expired> for Failure {
    fn from(expired: Expired) -> Self {
        match expired {
            Expired::Elapsed => Failure::TimedOut,
            Expired::Interrupted => Failure::Interrupted,
        }
    }
}

/// A socket that is about to be connected.
#[derive(Debug)]
pub struct NewSocket {
    socket: Socket,
    peer: SockAddr,
}

/// The option that would let a socket have an address of another host, and why it does not.
#[derive(Debug)]
pub struct Transparent {
    pub name: &'static str,
    pub error: io::Error,
}

impl NewSocket {
    pub fn to(address: &Address) -> io::Result<Self> {
        let (domain, peer) = match address {
            Address::Inet(address) => (Domain::for_address(*address), SockAddr::from(*address)),
            Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
        };
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
        Ok(NewSocket { socket, peer })
    }

    /// Bytes.
    pub fn set_receive_buffer(&self, size: usize) -> io::Result<()> {
        self.socket.set_recv_buffer_size(size)
    }

    /// Bytes.
    pub fn set_send_buffer(&self, size: usize) -> io::Result<()> {
        self.socket.set_send_buffer_size(size)
    }

    /// A peer on this host is sent to without pacing: for connections that may carry much.
    pub fn send_unpaced_on_loopback(&self) {
        if self.peer.as_socket().is_some_and(|peer| peer.ip().is_loopback()) {
            os::send_unpaced(self.socket.as_fd());
        }
    }

    /// Lets it be bound to an address that is not this host's (`IP_TRANSPARENT`).
    pub fn set_transparent(&self) -> Result<(), Transparent> {
        let (name, set) = if self.peer.is_ipv6() {
            ("IPV6_TRANSPARENT", self.socket.set_ip_transparent_v6(true))
        } else {
            ("IP_TRANSPARENT", self.socket.set_ip_transparent_v4(true))
        };
        set.map_err(|error| Transparent { name, error })
    }

    /// Gives it a local address. When the port is left to the kernel, that chooses with a view to
    /// the peer's address, so that many connections can share a port (`IP_BIND_ADDRESS_NO_PORT`).
    pub fn bind(&self, address: std::net::SocketAddr) -> io::Result<()> {
        if address.port() == 0 && !self.peer.is_unix() {
            let on: libc::c_int = 1;
            #[allow(unsafe_code)]
            // SAFETY: the option's value is the integer pointed to, which outlives the call. A kernel
            // without the option has fewer ports to give, no more.
            unsafe {
                libc::setsockopt(
                    self.socket.as_raw_fd(),
                    libc::IPPROTO_IP,
                    libc::IP_BIND_ADDRESS_NO_PORT,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                );
            }
        }
        self.socket.bind(&address.into())
    }

    /// Connects, waiting at most `limit`.
    pub async fn connect(self, limit: Duration) -> Result<Stream, Failure> {
        self.begin()?.established(limit).await
    }

    /// Sets out to connect. Never blocks the ring thread: a full unix backlog is `EAGAIN` at once.
    ///
    /// What is sent first goes out together with the last step of TCP's handshake (`TCP_QUICKACK`
    /// off until then): a peer that wakes for a connection finds the request there, and a segment is
    /// saved.
    pub fn begin(self) -> io::Result<Connecting> {
        if !self.peer.is_unix() {
            // Without it there is one more segment, and no harm.
            let _ = rustix::net::sockopt::set_tcp_quickack(&self.socket, false);
        }
        let is_established = match self.socket.connect(&self.peer) {
            Ok(()) => true,
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => false,
            Err(e) => return Err(e),
        };
        Ok(Connecting { stream: Stream::new(self.socket.into())?, is_established })
    }
}

/// A socket on its way to its peer.
#[derive(Debug)]
pub struct Connecting {
    stream: Stream,
    is_established: bool,
}

impl Connecting {
    /// Sends what there is to send first, if the peer has been reached: a neighbour on the same
    /// machine has by now, and its taking bytes is what tells. Gives how many bytes went.
    pub fn try_send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.stream.try_send(slices) {
            Ok(sent) => {
                if !std::mem::replace(&mut self.is_established, true) {
                    self.stream.acknowledge_at_once();
                }
                Ok(sent)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// The stream, once the peer has been reached; it is waited for at most `limit`.
    pub async fn established(self, limit: Duration) -> Result<Stream, Failure> {
        if !self.is_established {
            self.stream.writable(limit).await?;
            self.stream.acknowledge_at_once();
            let error = rustix::net::sockopt::socket_error(self.stream.fd());
            error.map_err(io::Error::from)?.map_err(|e| Failure::Io(e.into()))?;
        }
        Ok(self.stream)
    }

    pub fn is_established(&self) -> bool {
        self.is_established
    }

    /// The stream, if the peer has been reached.
    pub fn try_into_stream(self) -> Result<Stream, Connecting> {
        if self.is_established { Ok(self.stream) } else { Err(self) }
    }
}

/// A non-blocking stream socket on the shard's ring, with its timer.
///
/// monoio's `TcpStream` is used for every stream: the operations it makes (recv, poll) are those of
/// any stream socket, so one type serves TCP and unix sockets.
pub struct Stream {
    inner: ManuallyDrop<UnsafeCell<TcpStream>>,
    /// Operations that the kernel may still hold. Not counted down when one is dropped under way:
    /// the descriptor is then left for monoio to close when the kernel is done with it.
    in_flight: Cell<u64>,
    /// Others have copies of the socket, which go on.
    is_shared: bool,
    timer: Timer,
}

/// Whether the peer has sent nothing and is still there: what an idle connection must be before it is
/// used again.
pub fn is_quiet(socket: BorrowedFd<'_>) -> bool {
    let peeked = rustix::net::recv(socket, &mut [0u8; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK);
    matches!(peeked, Err(rustix::io::Errno::AGAIN))
}

impl Stream {
    /// A socket that is listened on: only waited for, and shared with whoever has a copy.
    pub fn listening(socket: OwnedFd) -> io::Result<Self> {
        let mut stream = Self::new(socket)?;
        stream.is_shared = true;
        Ok(stream)
    }

    /// Takes a socket that is already non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let inner = TcpStream::from_std(std::net::TcpStream::from(socket))?;
        Ok(Stream {
            inner: ManuallyDrop::new(UnsafeCell::new(inner)),
            in_flight: Cell::new(0),
            is_shared: false,
            timer: Timer::new(),
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is open as long as `self` is.
        unsafe {
            BorrowedFd::borrow_raw(self.tcp().as_raw_fd())
        }
    }

    fn tcp(&self) -> &TcpStream {
        #[allow(unsafe_code)]
        // SAFETY: the only `&mut` ever made is in `start_recv`, where it lives for one call.
        unsafe {
            &*self.inner.get()
        }
    }

    /// Receives behind the buffer's content, at most what there is room for. Zero: end of stream.
    pub async fn recv(
        &self,
        buffer: Buffer,
        limit: Duration,
        wait: Wait,
    ) -> (Result<usize, Failure>, Buffer) {
        match self.timer.within(limit, wait, self.recv_unlimited(buffer)).await {
            Ok((received, buffer)) => (received.map_err(Failure::Io), buffer),
            // The operation took the buffer along: the kernel may still write to it.
            Err(expired) => (Err(expired.into()), Buffer::empty()),
        }
    }

    /// [`Stream::recv`] without a deadline.
    pub async fn recv_unlimited(&self, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        debug_assert!(buffer.spare() > 0, "a receive without room reads as an end");
        #[allow(unsafe_code)]
        // SAFETY: no other reference made from `inner` is used during this call, and the returned
        // future owns a handle of its own to the descriptor (monoio's halves of a stream rely on
        // the same).
        let operation = unsafe { (*self.inner.get()).read(buffer) };
        self.begin_operation();
        let (received, buffer) = operation.await;
        self.end_operation();
        (received, buffer)
    }

    /// [`Stream::recv`] that gives the buffer back also when the time is up: it waits first, and receives
    /// then.
    pub async fn recv_keeping(
        &self,
        mut buffer: Buffer,
        limit: Duration,
        wait: Wait,
    ) -> (Result<usize, Failure>, Buffer) {
        let received = loop {
            match self.try_recv_into(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(failure) = self.readable(limit, wait).await {
                        break Err(failure);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                received => break received.map_err(Failure::Io),
            }
        };
        (received, buffer)
    }

    /// Receives what is there, without waiting.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.fd(), buffer, RecvFlags::DONTWAIT)?.0)
    }

    /// Receives behind the buffer's content what is there, without waiting. Zero: end of stream.
    pub fn try_recv_into(&self, buffer: &mut Buffer) -> io::Result<usize> {
        debug_assert!(buffer.spare() > 0, "a receive without room reads as an end");
        let (_, n) = rustix::net::recv(self.fd(), buffer.room(), RecvFlags::DONTWAIT)?;
        #[allow(unsafe_code)]
        // SAFETY: so many bytes of the room have just been written by the kernel.
        unsafe {
            buffer.set_init(n);
        }
        Ok(n)
    }

    /// [`is_quiet`]
    pub fn is_quiet(&self) -> bool {
        is_quiet(self.fd())
    }

    /// Whether there is a byte to receive: no is the end of the stream.
    pub fn has_unread_bytes(&self) -> io::Result<bool> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        Ok(rustix::net::recv(self.fd(), &mut [0u8; 1], flags)?.0 > 0)
    }

    /// Waits until the peer has ended its side or is gone, whatever is still unread of what it sent.
    /// It takes a descriptor for that time, which there may not be: the ring's own polls are for input,
    /// and that is there.
    pub async fn ended(&self) -> io::Result<()> {
        let ends = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&ends, self.fd(), epoll::EventData::new_u64(0), epoll::EventFlags::RDHUP)?;
        Stream::new(ends)?.readable_unlimited().await
    }

    /// What has become of the socket, told once.
    pub fn take_error(&self) -> Option<io::Error> {
        let error = rustix::net::sockopt::socket_error(self.fd());
        Some(error.ok()?.err()?.into())
    }

    /// Sends what the socket takes at once; `WouldBlock` when that is nothing.
    pub fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match slices {
            [one] => rustix::net::send(self.fd(), one, flags),
            many => {
                rustix::net::sendmsg(self.fd(), many, &mut SendAncillaryBuffer::default(), flags)
            }
        };
        Ok(sent?)
    }

    /// [`Stream::try_send`], made together with what others send in this turn.
    pub async fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match outbox::send(self.fd(), slices) {
            Some(sending) => sending.await,
            None => self.try_send(slices),
        }
    }

    /// Sends everything, waiting whenever the socket is full, at most `limit` at a time.
    /// Returns how many bytes went out, also when it failed.
    pub async fn send_all(
        &self,
        mut slices: &mut [IoSlice<'_>],
        limit: Duration,
    ) -> (u64, Result<(), Failure>) {
        let mut total = 0_u64;
        loop {
            // What is empty is left out.
            IoSlice::advance_slices(&mut slices, 0);
            if slices.is_empty() {
                return (total, Ok(()));
            }
            match self.send(slices).await {
                Ok(sent) => {
                    total = total.saturating_add(sent as u64);
                    IoSlice::advance_slices(&mut slices, sent);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(failure) = self.writable(limit).await {
                        return (total, Err(failure));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (total, Err(e.into())),
            }
        }
    }

    /// Waits until there is something to read or the peer is gone.
    pub async fn readable(&self, limit: Duration, wait: Wait) -> Result<(), Failure> {
        Ok(self.timer.within(limit, wait, self.readable_unlimited()).await??)
    }

    pub async fn readable_unlimited(&self) -> io::Result<()> {
        self.counted(self.tcp().readable(false)).await
    }

    /// Waits until the socket takes bytes, or has failed.
    pub async fn writable(&self, limit: Duration) -> Result<(), Failure> {
        Ok(self.timer.within(limit, Wait::Busy, self.writable_unlimited()).await??)
    }

    pub async fn writable_unlimited(&self) -> io::Result<()> {
        self.counted(self.tcp().writable(false)).await
    }

    async fn counted<T>(&self, operation: impl Future<Output = T>) -> T {
        self.begin_operation();
        let output = operation.await;
        self.end_operation();
        output
    }

    #[expect(clippy::arithmetic_side_effects, reason = "2^64 operations never pass")]
    fn begin_operation(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    #[expect(clippy::arithmetic_side_effects, reason = "it has been counted when it began")]
    fn end_operation(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }

    /// The stream's own timer: one wait at a time.
    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    pub fn set_nodelay(&self) {
        // A unix socket refuses; it has no delay to begin with.
        let _ = rustix::net::sockopt::set_tcp_nodelay(self.fd(), true);
    }

    /// As TCP begins: a peer that sends its head and its body in two small pieces would wait for 40 ms
    /// between them if the first were acknowledged late (Nagle).
    fn acknowledge_at_once(&self) {
        // Only a stream that was connected in steps comes here, and that is TCP's.
        let _ = rustix::net::sockopt::set_tcp_quickack(self.fd(), true);
    }

    pub fn set_keepalive(&self) {
        let _ = socket2::SockRef::from(&self.fd()).set_tcp_keepalive(&TcpKeepalive::new());
    }

    /// No more will be sent: the peer sees the end after what is under way.
    pub fn shutdown_write(&self) {
        let _ = rustix::net::shutdown(self.fd(), Shutdown::Write);
    }

    /// Gives the socket away, open and non-blocking.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        // The kernel may still hold a cancelled operation, and monoio its descriptor until then: the
        // socket goes on under another.
        let is_held = self.in_flight.get() > 0;
        let copy = is_held.then(|| self.fd().try_clone_to_owned()).transpose()?;
        let mut this = ManuallyDrop::new(self);
        #[allow(unsafe_code)]
        // SAFETY: both fields are taken once: `this` is neither used again nor dropped.
        let (tcp, timer) = unsafe {
            (
                ManuallyDrop::take(&mut this.inner).into_inner(),
                std::ptr::read(&raw const this.timer),
            )
        };
        drop(timer);
        if let Some(copy) = copy {
            return Ok(copy);
        }
        let fd = tcp.into_raw_fd();
        #[allow(unsafe_code)]
        // SAFETY: `into_raw_fd` gave up the ownership.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Ends the connection now, by a reset: to the kernel a socket that goes back to no address at
    /// all (connect(2), `AF_UNSPEC`), which needs no close and so nobody to let go of it.
    pub fn reset(&self) {
        let _ = rustix::net::connect_unspec(self.fd());
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        #[allow(unsafe_code)]
        // SAFETY: `inner` is not used after this.
        let tcp = unsafe { ManuallyDrop::take(&mut self.inner) }.into_inner();
        if self.in_flight.get() == 0 {
            // Nothing holds the descriptor: close it here and now, in order with what was written.
            let fd = tcp.into_raw_fd();
            #[allow(unsafe_code)]
            // SAFETY: `into_raw_fd` gave up the ownership.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        } else if !self.is_shared {
            // A cancelled operation: the peer sees the end now, the descriptor goes when the kernel
            // lets go of it.
            let _ = rustix::net::shutdown(tcp_fd(&tcp), Shutdown::Both);
        }
    }
}

fn tcp_fd(tcp: &TcpStream) -> BorrowedFd<'_> {
    #[allow(unsafe_code)]
    // SAFETY: the descriptor is open as long as the stream is.
    unsafe {
        BorrowedFd::borrow_raw(tcp.as_raw_fd())
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({})", self.tcp().as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use monoio::{LegacyDriver, RuntimeBuilder};
    use std::os::unix::net::UnixStream;
    use std::task::Poll;

    #[test]
    fn a_listening_socket_goes_on_for_who_has_a_copy() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let copy = listener.try_clone().unwrap();
        let waited = crate::io::runtime::Ring::detect().0.run(async {
            let stream = Stream::listening(copy.into()).unwrap();
            let mut wait = std::pin::pin!(stream.readable_unlimited());
            std::future::poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_pending())).await
        });
        assert!(waited.unwrap());
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn operations_dropped_under_way_are_held_beyond_32_bits_of_them() {
        let mut runtime = RuntimeBuilder::<LegacyDriver>::new().build().unwrap();
        runtime.block_on(async {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let stream = Stream::new(ours.into()).unwrap();
            stream.in_flight.set(u64::from(u32::MAX));
            {
                let mut wait = std::pin::pin!(stream.readable_unlimited());
                let is_pending =
                    std::future::poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_pending()));
                assert!(is_pending.await);
            }
            assert_eq!(stream.in_flight.get(), 1 << 32, "dropped under way: still held");
        });
    }
}
