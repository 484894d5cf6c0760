//! The prober's thread as the master sees it: there when a configuration has health checks, replaced
//! with it, ended and joined when it is dropped.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::failure::Failure;
use super::shards::Common;
use crate::http::upstream::health::{self, Start};
use crate::modules::Config;
use crate::os;

/// The thread, if there is anything to check.
#[derive(Debug, Default)]
pub struct Prober(Option<Handle>);

#[derive(Debug)]
struct Handle {
    /// The thread ends when this is closed.
    bell: UnixStream,
    thread: JoinHandle<()>,
}

impl Prober {
    /// Begins with the servers as this configuration wants them: a prober of the one before has to be
    /// gone, or it would go on to tell what it knows.
    pub fn start(common: &Common, config: &Arc<Config>) -> Result<Self, Failure> {
        if let Some(http) = &config.http {
            health::begin(http);
        }
        if !health::is_needed(config) {
            return Ok(Prober(None));
        }
        let (bell, theirs) = UnixStream::pair().map_err(Failure::call("socketpair"))?;
        theirs.set_nonblocking(true).map_err(Failure::call("ioctl"))?;
        let start = Start {
            ring: common.ring,
            config: Arc::clone(config),
            files: Arc::clone(&common.files),
            bell: theirs,
        };
        // As a shard does: it sees the servers that a shard sees.
        let gives_up_capabilities = common.gives_up_capabilities;
        let thread = thread::Builder::new()
            .name("ringx health".to_owned())
            .spawn(move || {
                if !gives_up_capabilities || os::clear_capabilities().is_ok() {
                    health::run(start);
                }
            })
            .map_err(Failure::call("pthread_create"))?;
        Ok(Prober(Some(Handle { bell, thread })))
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        if let Some(Handle { bell, thread }) = self.0.take() {
            drop(bell);
            // A panic has been told in the log.
            let _ = thread.join();
        }
    }
}
