//! The shard's ring: monoio with `io_uring`, or with epoll where that is denied.

use std::cell::{Cell, RefCell};
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode};
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};
use rustix::io::Errno;
use rustix::io_uring::{IoringEnterFlags, IoringRegisterOp, io_uring_enter, io_uring_register};
use slab::Slab;

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

    /// Runs a future to its end on this thread, and then ends the tasks that it has left behind; a
    /// panic of it is passed on after that.
    pub fn run<F: Future>(self, future: F) -> io::Result<F::Output> {
        match self {
            Ring::IoUring => {
                let runtime = RuntimeBuilder::<IoUringDriver>::new()
                    .uring_builder(builder())
                    .with_entries(ENTRIES)
                    .enable_timer()
                    .build()?;
                Ok(drive(runtime, future))
            }
            Ring::Epoll => {
                let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
                Ok(drive(runtime, future))
            }
        }
    }
}

/// A runtime that is dropped with tasks in it would leak whatever they hold: they are kept by those
/// who would wake them, and those by them.
fn drive<D: monoio::Driver, F: Future>(mut runtime: Runtime<D>, future: F) -> F::Output {
    let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(future)));
    // Where that panics too, the runtime itself is broken, and what it holds is lost.
    let _ = catch_unwind(AssertUnwindSafe(|| runtime.block_on(end_tasks())));
    ran.unwrap_or_else(|panic| resume_unwind(panic))
}

/// An operation is cancelled, then it is told, then its descriptor is closed, and each takes a turn of
/// the ring: so many, and some to spare, however late this thread has its time.
const TURNS: usize = 6;
const TURN: Duration = Duration::from_millis(2);

/// Waits until the ring has closed what was let go of with an operation under way.
pub async fn settle() {
    for _ in 0..TURNS {
        pause(TURN).await;
    }
}

async fn end_tasks() {
    ENDING.set(true);
    let wakers =
        TASKS.with_borrow(|tasks| tasks.iter().map(|(_, w)| w.clone()).collect::<Vec<_>>());
    wakers.into_iter().for_each(Waker::wake);
    settle().await;
    ENDING.set(false);
}

/// The ring is only ever used by its own thread, and completions are run when that thread enters
/// the kernel anyway: no interrupts from the kernel's side.
pub(super) fn builder() -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.setup_coop_taskrun().setup_single_issuer();
    builder
}

/// The ring of this thread's runtime, which monoio does not tell: the one descriptor, of all that the
/// process has, that lets this thread ask. `None`: there is none, or the thread has other rings too.
pub fn own_ring() -> io::Result<Option<OwnedFd>> {
    let mut own = None;
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        #[allow(unsafe_code)]
        // SAFETY: whatever has this number by now, no more is done with it than to ask whether it is this
        // thread's ring, and that is closed by nobody else.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if is_own(fd) && own.replace(fd).is_some() {
            return Ok(None);
        }
    }
    Ok(own.map(|ring| rustix::io::fcntl_dupfd_cloexec(ring, 0)).transpose()?)
}

/// The kernel lets a thread ask what a ring knows if it is that thread's, and nothing but a ring.
fn is_own(fd: BorrowedFd<'_>) -> bool {
    // A `struct io_uring_probe` without room for operations.
    let mut head = [0_u64; 2];
    let head = head.as_mut_ptr().cast();
    #[allow(unsafe_code)]
    // SAFETY: `head` has room for what is told of no operation.
    let asked = unsafe { io_uring_register(fd, IoringRegisterOp::RegisterProbe, head, 0) };
    asked.is_ok()
}

/// Submits what has been written down for this thread's ring.
pub fn submit(ring: &OwnedFd) -> Result<(), Errno> {
    #[allow(unsafe_code)]
    // SAFETY: whatever is written down is there to be submitted by the next call, whoever makes it.
    let submitted = unsafe { io_uring_enter(ring, ENTRIES, 0, IoringEnterFlags::empty()) };
    submitted.map(|_| ())
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

thread_local! {
    /// The wakers of this thread's tasks.
    static TASKS: RefCell<Slab<Waker>> = const { RefCell::new(Slab::new()) };
    /// Tasks end when they are woken.
    static ENDING: Cell<bool> = const { Cell::new(false) };
    /// How many wait by monoio's timers.
    static PAUSES: Cell<usize> = const { Cell::new(0) };
    /// How many times a task has been run.
    static RUNS: Cell<u64> = const { Cell::new(0) };
}

/// How many times a task of this thread has been run so far.
pub fn runs() -> u64 {
    RUNS.get()
}

/// A task: its future, until the thread ends its tasks.
struct Task<F> {
    future: Option<Pin<Box<F>>>,
    /// Where its waker is kept, since it has first run.
    key: Option<usize>,
}

impl<F> Task<F> {
    /// On the heap before the executor takes it: what an async block takes, and then pins, it has room
    /// for twice.
    fn new(future: F) -> Self {
        Task { future: Some(Box::pin(future)), key: None }
    }
}

impl<F: Future<Output = ()>> Future for Task<F> {
    /// What a panic in it said.
    type Output = Result<(), String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.key.is_none() {
            self.key = Some(TASKS.with_borrow_mut(|tasks| tasks.insert(cx.waker().clone())));
        }
        let is_ending = ENDING.get();
        RUNS.set(RUNS.get().wrapping_add(1));
        // What the panicking task shared with others is counters and pools that are consistent
        // between any two of its steps.
        let step = AssertUnwindSafe(|| match &mut self.future {
            Some(future) if !is_ending => future.as_mut().poll(cx),
            _ => Poll::Ready(()),
        });
        let polled = catch_unwind(step);
        if matches!(polled, Ok(Poll::Pending)) {
            return Poll::Pending;
        }
        let dropped = catch_unwind(AssertUnwindSafe(|| self.future = None));
        Poll::Ready(polled.and(dropped).map_err(|panic| panic_text(&*panic)))
    }
}

impl<F> Drop for Task<F> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            // They are gone when the thread is ending.
            let _ = TASKS.try_with(|tasks| tasks.borrow_mut().try_remove(key));
        }
    }
}

/// Starts a task on this shard. A panic in it ends that task alone and is given to `on_panic`.
pub fn spawn<F>(future: F, on_panic: impl FnOnce(&str) + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let task = Task::new(future);
    monoio::spawn(async move {
        if let Err(text) = task.await {
            on_panic(&text);
        }
    });
}

/// Waits without the shard's clock.
pub async fn pause(duration: Duration) {
    let _pause = Pause::begin();
    monoio::time::sleep(duration).await;
}

/// One that waits by monoio's timers.
struct Pause;

impl Pause {
    fn begin() -> Self {
        PAUSES.set(PAUSES.get().saturating_add(1));
        Pause
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        // It is gone when the thread is ending.
        let _ = PAUSES.try_with(|pauses| pauses.set(pauses.get().saturating_sub(1)));
    }
}

/// Whether anybody [pauses](pause): nobody but monoio knows until when.
pub fn is_paused() -> bool {
    PAUSES.get() > 0
}

/// Waits for a future that may panic; the error is what the panic said.
pub async fn contain<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        // What the panicking task shared with others is counters and pools that are consistent
        // between any two of its steps.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic_text(&*panic))),
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
    monoio::spawn(Task::new(async move {
        while let Err(text) = contain(Box::pin(make())).await {
            on_panic(&text);
            // Not by the shard's clock: that is one of the services.
            pause(PAUSE).await;
        }
    }));
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
    use std::io::Read as _;
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
    fn what_tasks_hold_is_given_back_at_the_end() {
        use crate::io::{Stream, timer};
        for ring in [Ring::detect().0, Ring::Epoll] {
            for panics in [false, true] {
                let held = Rc::new(());
                let (sender, receiver) = std::os::unix::net::UnixStream::pair().unwrap();
                let (gives, fails) = (Rc::clone(&held), Rc::clone(&held));
                let live = async move {
                    // Each waits for something that has its waker, and that it keeps alive.
                    spawn(
                        async move {
                            let own = Rc::new((crate::io::select::Signal::default(), gives));
                            own.0.wait().await;
                        },
                        |_| {},
                    );
                    spawn(
                        async move {
                            let timer = timer::Timer::new();
                            let wait = timer::Wait::Service;
                            let _ = timer
                                .within(Duration::MAX, wait, std::future::pending::<()>())
                                .await;
                            drop(fails);
                        },
                        |_| {},
                    );
                    spawn(
                        async move {
                            let socket = Stream::new(receiver.into()).unwrap();
                            let _ =
                                socket.recv_unlimited(crate::io::Buffer::with_capacity(64)).await;
                        },
                        |_| {},
                    );
                    spawn_service(timer::run_clock, |_| {});
                    pause(Duration::from_millis(20)).await;
                    assert!(!panics, "main");
                };
                let ran = catch_unwind(AssertUnwindSafe(|| ring.run(live)));
                assert_eq!(ran.is_err(), panics);
                assert_eq!(Rc::strong_count(&held), 1);
                assert_eq!((&sender).read(&mut [0]).unwrap(), 0, "it is closed");
            }
        }
    }

    #[test]
    fn the_place_of_a_panic_is_told() {
        note_panics();
        let panicked = std::panic::catch_unwind(|| panic!("{} things", 3)).unwrap_err();
        let text = panic_text(&*panicked);
        assert!(text.starts_with("3 things at src/io/runtime.rs:"), "{text}");
    }
}
