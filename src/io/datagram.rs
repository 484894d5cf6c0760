//! A connected datagram socket: one question and its answer.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

use super::Stream;

/// A UDP socket at a port the kernel chose by chance. What others than the peer send never comes
/// through, and a peer that does not listen is an error.
#[derive(Debug)]
pub struct Datagram(Stream);

impl Datagram {
    pub fn to(peer: SocketAddr) -> io::Result<Self> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(peer), kind, None)?;
        // Of a datagram socket this only keeps the address: it does not wait.
        socket.connect(&peer.into())?;
        Ok(Datagram(Stream::new(socket.into())?))
    }

    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        self.0.try_send(&[io::IoSlice::new(message)]).map(drop)
    }

    /// One datagram; what does not fit is lost.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.try_recv(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.0.readable_unlimited().await?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                received => return received,
            }
        }
    }
}
