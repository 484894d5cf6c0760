//! What only the operating system can do or tell.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `$hostname`
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// 16 random bytes as 32 hex digits: `$request_id`.
pub fn random_hex() -> [u8; 32] {
    [b'0'; 32]
}

/// What the kernel knows of a TCP connection.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    let _ = socket.as_raw_fd();
    Err(io::ErrorKind::Unsupported.into())
}
