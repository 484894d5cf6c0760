//! The shard's ring: monoio with `io_uring`, or with epoll where that is denied.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

/// Submission queue entries of a shard's ring; more in one turn are submitted in several calls.
const ENTRIES: u32 = 1024;

/// What waits for the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    IoUring,
    Epoll,
}

impl Ring {
    pub fn name(self) -> &'static str {
        match self {
            Ring::IoUring => "io_uring",
            Ring::Epoll => "epoll",
        }
    }

    /// The best ring that this kernel, and whatever confines the process, allows. The error says
    /// why it is not `io_uring`.
    pub fn detect() -> (Ring, Option<io::Error>) {
        match builder().build(8).and_then(|ring: IoUring| probe(&ring)) {
            Ok(()) => (Ring::IoUring, None),
            Err(e) => (Ring::Epoll, Some(e)),
        }
    }

    /// Runs a future to its end on this thread.
    pub fn run<F: Future>(self, future: F) -> io::Result<F::Output> {
        match self {
            Ring::IoUring => {
                let mut runtime = RuntimeBuilder::<IoUringDriver>::new()
                    .uring_builder(builder())
                    .with_entries(ENTRIES)
                    .enable_timer()
                    .build()?;
                Ok(runtime.block_on(future))
            }
            Ring::Epoll => {
                let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
                Ok(runtime.block_on(future))
            }
        }
    }
}

/// The ring is only ever used by its own thread, and completions are run when that thread enters
/// the kernel anyway: no interrupts from the kernel's side.
fn builder() -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.setup_coop_taskrun().setup_single_issuer();
    builder
}

fn probe(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Recv::CODE, opcode::PollAdd::CODE, opcode::AsyncCancel::CODE];
    if needed.iter().all(|&code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// What the kernel's ring offers, for `-V`.
pub fn features() -> String {
    let ring = match builder().build(8) {
        Ok(ring) => ring,
        Err(e) => return format!("io_uring denied ({e}), epoll is used"),
    };
    let ring: &IoUring = &ring;
    let params = ring.params();
    let mut features = vec!["io_uring", "coop_taskrun", "single_issuer"];
    let known: [(bool, &str); 5] = [
        (params.is_feature_nodrop(), "nodrop"),
        (params.is_feature_ext_arg(), "ext_arg"),
        (params.is_feature_fast_poll(), "fast_poll"),
        (params.is_feature_native_workers(), "native_workers"),
        (params.is_feature_linked_file(), "linked_file"),
    ];
    features.extend(known.iter().filter(|(has, _)| *has).map(|(_, name)| *name));
    let mut probe = Probe::new();
    if ring.submitter().register_probe(&mut probe).is_ok() {
        let known = [
            (opcode::Recv::CODE, "recv"),
            (opcode::PollAdd::CODE, "poll"),
            (opcode::AsyncCancel::CODE, "async_cancel"),
            (opcode::Splice::CODE, "splice"),
        ];
        features
            .extend(known.iter().filter(|(code, _)| probe.is_supported(*code)).map(|(_, n)| *n));
    }
    features.join(" ")
}

/// Starts a task on this shard. A panic in it ends that task alone and is given to `on_panic`.
pub fn spawn<F>(future: F, on_panic: impl FnOnce(&str) + 'static)
where
    F: Future<Output = ()> + 'static,
{
    // On the heap before the task takes it: what an async block takes, and then pins, it has room for
    // twice.
    let future = Box::pin(future);
    monoio::spawn(async move {
        if let Err(text) = contain(future).await {
            on_panic(&text);
        }
    });
}

/// Waits for a future that may panic; the error is what the panic said.
pub async fn contain<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        // What the panicking task shared with others is counters and pools that are consistent
        // between any two of its steps.
        let step = std::panic::AssertUnwindSafe(|| future.as_mut().poll(cx));
        match std::panic::catch_unwind(step) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(panic_text(&*panic))),
        }
    })
    .await
}

/// Starts what the shard cannot do without: after a panic, given to `on_panic`, it is made anew.
pub fn spawn_service<F>(make: impl Fn() -> F + 'static, on_panic: impl Fn(&str) + 'static)
where
    F: Future<Output = ()> + 'static,
{
    /// What panics each time is not to fill the log, nor to keep the core busy.
    const PAUSE: Duration = Duration::from_millis(100);
    monoio::spawn(async move {
        while let Err(text) = contain(Box::pin(make())).await {
            on_panic(&text);
            // Not by the shard's clock: that is one of the services.
            monoio::time::sleep(PAUSE).await;
        }
    });
}

thread_local! {
    /// Where this thread has panicked last.
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has the place of a panic noted for [`panic_text`], from now on and in every thread.
pub fn note_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if let Some(place) = info.location() {
            let _ = PANICKED_AT.try_with(|at| *at.borrow_mut() = Some(place.to_string()));
        }
        before(info);
    }));
}

/// What the panic just caught in this thread said, and where.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    match PANICKED_AT.take() {
        Some(place) => format!("{text} at {place}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_service_begins_anew_after_a_panic_and_a_task_does_not() {
        let (begun, told) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
        let (begins, tells) = (Rc::clone(&begun), Rc::clone(&told));
        let make = move || {
            let begins = Rc::clone(&begins);
            async move {
                begins.set(begins.get() + 1);
                assert!(begins.get() == 3, "time {}", begins.get());
            }
        };
        let once = Rc::clone(&told);
        let live = async {
            spawn(async { panic!("task") }, move |text| once.borrow_mut().push(text.to_owned()));
            spawn_service(make, move |text| tells.borrow_mut().push(text.to_owned()));
            while begun.get() < 3 {
                monoio::time::sleep(Duration::from_millis(10)).await;
            }
            monoio::time::sleep(Duration::from_millis(150)).await;
        };
        Ring::Epoll.run(live).unwrap();
        assert_eq!(begun.get(), 3, "one that ends has ended");
        let told = told.borrow();
        let said: Vec<_> = told.iter().map(|text| text.split(" at ").next().unwrap()).collect();
        assert_eq!(said, ["task", "time 1", "time 2"]);
    }

    #[test]
    fn the_place_of_a_panic_is_told() {
        note_panics();
        let panicked = std::panic::catch_unwind(|| panic!("{} things", 3)).unwrap_err();
        let text = panic_text(&*panicked);
        assert!(text.starts_with("3 things at src/io/runtime.rs:"), "{text}");
    }
}
