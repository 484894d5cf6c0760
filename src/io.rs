//! The only I/O names the rest of the tree may use: a thin face over monoio.
//!
//! Two rules hold everywhere. *A send never waits in the kernel*: the socket takes what it takes at
//! once, and only a full one is waited for on the ring. A short send is made together with those of
//! the other tasks that are ready ([`outbox`]), any other by itself. And *a posted receive is never
//! dropped* while its connection lives on, because the kernel may already have moved bytes into it:
//! where two things are awaited at once, readiness is polled instead.

pub mod batch;
pub mod buffer;
pub mod client;
pub mod datagram;
pub mod file;
pub mod outbox;
pub mod poller;
pub mod pooled;
pub mod runtime;
pub mod select;
pub mod standby;
pub mod stream;
pub mod timer;
pub mod turns;

pub use buffer::Buffer;
pub use datagram::Datagram;
pub use poller::Poller;
pub use pooled::Pooled;
pub use stream::Stream;

/// Frees the buffers and blocks that this shard keeps for reuse.
pub fn release_kept() {
    buffer::release_kept();
    pooled::release_kept();
}
