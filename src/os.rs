//! What only the operating system can do or tell: identity and capabilities, affinity, limits,
//! signals, the background, descriptors across exec, socket options that no crate wraps.

use std::ffi::{CString, OsString, c_int};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit};
use rustix::rand::GetRandomFlags;
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet};
use thiserror::Error;

use crate::error_log::Errno;

/// `$hostname`, in lower case as nginx has it.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase()
}

/// `Linux 6.1.0`: what the log says at start.
pub fn kernel() -> String {
    let name = rustix::system::uname();
    format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy())
}

/// Gives the system back what the allocator holds free, in whole pages. Takes a moment: other threads
/// wait for the part that is looked at.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    // SAFETY: the allocator's own function, which locks what it looks at.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// 16 random bytes as 32 hex digits: `$request_id`.
#[expect(clippy::indexing_slicing, reason = "half a byte is less than sixteen")]
pub fn random_hex() -> [u8; 32] {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut hex = [0; 32];
    for (pair, byte) in hex.chunks_exact_mut(2).zip(random_bytes()) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    hex
}

/// From the system's generator.
pub fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    if rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty()) != Ok(bytes.len()) {
        // Denied: the keys of the standard library's hash maps, which have a way around it.
        let keys = RandomState::new();
        let [first, second] = [0, 1].map(|half: u8| keys.hash_one(half).to_ne_bytes());
        bytes[..8].copy_from_slice(&first);
        bytes[8..].copy_from_slice(&second);
    }
    bytes
}

// Sockets.

/// What the kernel knows of a TCP connection.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes at most `length` bytes into `info`, and every bit pattern, the
    // zeroes behind a shorter answer included, is a `tcp_info`.
    unsafe {
        check(libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        ))?;
        Ok(info.assume_init())
    }
}

/// `deferred`: a connection is accepted when its first bytes are there (`TCP_DEFER_ACCEPT`).
pub fn set_deferred(socket: BorrowedFd<'_>, deferred: bool) -> io::Result<()> {
    set_tcp_option(socket, libc::TCP_DEFER_ACCEPT, i32::from(deferred))
}

/// `fastopen=`: how many connections may wait whose handshake is not complete (`TCP_FASTOPEN`).
pub fn set_fastopen(socket: BorrowedFd<'_>, queue: i32) -> io::Result<()> {
    set_tcp_option(socket, libc::TCP_FASTOPEN, queue)
}

/// Has a TCP socket send as soon as its receiver has room, where the system's congestion control would
/// pace it (`bbr`): for one whose peers are all on this host. What joins them is memory, which nothing
/// congests, and pacing takes a timer for every burst. To be called before there is a connection: one
/// that has been paced goes on to be.
pub fn send_unpaced(socket: BorrowedFd<'_>) {
    use rustix::net::sockopt::{set_tcp_congestion, tcp_congestion};
    if tcp_congestion(socket).is_ok_and(|name| name.starts_with("bbr")) {
        // Every kernel has this one, for every user. Where it is refused, sending only costs more.
        let _ = set_tcp_congestion(socket, "reno");
    }
}

/// Lets new connections of an address go to the first `count` only of the sockets that share it
/// (`SO_REUSEPORT`), at random, in the order in which they began to listen. What another one has in its
/// queue, or in a handshake, stays there.
pub fn choose_among_first(socket: BorrowedFd<'_>, count: u32) -> io::Result<()> {
    const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count.max(1)),
        step(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    #[allow(unsafe_code)]
    // SAFETY: the kernel reads a `sock_fprog`, and as many steps as it says there are.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            mem::size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
}

/// Undoes [`choose_among_first`].
pub fn choose_among_all(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, 0)
}

/// Lets a listening TCP socket not see that somebody wants to connect; handshakes that have begun go
/// on. `socket2`'s `detach_filter` undoes it.
pub fn ignore_new(socket: &socket2::Socket) -> io::Result<()> {
    /// Where a TCP header has its flags, and two of them (RFC 9293, 3.1).
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let step = |code: u32, jf: u8, k: u32| socket2::SockFilter::new(code as u16, 0, jf, k);
    socket.attach_filter(&[
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, FLAGS),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, SYN | ACK),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
    ])
}

/// Lets a socket be the same user's as another: only those of one user can share an address.
pub fn own_like(socket: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<()> {
    let [owner, wanted] = [socket, other].map(|fd| rustix::fs::fstat(fd).map(|stat| stat.st_uid));
    let wanted = wanted?;
    if owner? != wanted {
        rustix::fs::fchown(socket, Some(rustix::fs::Uid::from_raw(wanted)), None)?;
    }
    Ok(())
}

fn set_tcp_option(socket: BorrowedFd<'_>, option: c_int, value: c_int) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, option, value)
}

fn set_option(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: the kernel reads one `c_int`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            mem::size_of::<c_int>() as libc::socklen_t,
        )
    };
    check(result)
}

// The background.

/// Goes on in the background: the calling process ends with 0, and its child is the leader of a new
/// session, with nothing to read and nowhere to print. Standard error stays.
///
/// To be called before there is a second thread: threads do not survive in the child.
pub fn daemonize() -> io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: there is one thread, so no lock is held by another that is gone in the child.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {}
        _ => std::process::exit(0),
    }
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

/// Lets standard error be this file from now on, so that what a dying process says is found.
pub fn redirect_stderr(file: &impl AsFd) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stderr(file)?)
}

/// Lets the descriptor of `old` be the file of `new` from now on, for every thread at once.
pub fn replace_file(old: &impl AsFd, new: &impl AsFd) -> io::Result<()> {
    let (old, new) = (old.as_fd().as_raw_fd(), new.as_fd().as_raw_fd());
    #[allow(unsafe_code)]
    // SAFETY: no memory is touched. Both descriptors are open while they are borrowed, and `old`
    // stays open and its owner's: it is as if the owner had opened it on the other file.
    check(unsafe { libc::dup3(new, old, libc::O_CLOEXEC) })
}

/// Sets variables of the process's environment (`NAME=value`; `NAME` alone keeps what it is).
///
/// To be called before there is a second thread: others may be reading the environment.
pub fn set_environment(variables: &[String]) {
    let named = variables.iter().filter_map(|variable| variable.split_once('='));
    for (name, value) in named.filter(|(name, _)| !name.is_empty()) {
        #[allow(unsafe_code)]
        // SAFETY: there is one thread.
        unsafe {
            std::env::set_var(name, value);
        }
    }
}

/// Removes a variable from the process's environment; answers its value.
///
/// To be called before there is a second thread: others may be reading the environment.
pub fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    unset_environment(&[name]);
    Some(value)
}

/// Takes variables out of the process's environment.
///
/// To be called before there is a second thread: others may be reading the environment.
pub fn unset_environment(names: &[&str]) {
    for name in names {
        #[allow(unsafe_code)]
        // SAFETY: there is one thread.
        unsafe {
            std::env::remove_var(name);
        }
    }
}

/// `working_directory`
pub fn change_directory(path: &Path) -> io::Result<()> {
    Ok(rustix::process::chdir(path)?)
}

// Descriptors across exec.

/// Takes the sockets that the process was started with, by their numbers: each is this process's own
/// from now on, and no other program's. What is no socket, is standard input or output, or was taken
/// already, stays what it is.
///
/// Does it once, and is to be called before anything else is opened: a number that names nothing yet
/// could later be somebody else's.
pub fn take_sockets(numbers: &[RawFd]) -> Vec<io::Result<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let is_first_time = !TAKEN.swap(true, Ordering::Relaxed);
    let mut taken = Vec::new();
    let take = |&number: &RawFd| {
        if !is_first_time || number <= libc::STDERR_FILENO || taken.contains(&number) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        #[allow(unsafe_code)]
        // SAFETY: no memory is touched.
        check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
        taken.push(number);
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is open, as it has just been changed. It was so when the process
        // was started, as nothing has been opened since: it has no other owner.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        let kind = rustix::fs::fstat(&descriptor).map(|stat| stat.st_mode & libc::S_IFMT);
        if kind == Ok(libc::S_IFSOCK) {
            return Ok(descriptor);
        }
        let _stays_open = descriptor.into_raw_fd();
        Err(io::Error::from_raw_os_error(libc::ENOTSOCK))
    };
    numbers.iter().map(take).collect()
}

/// Starts a program that has these descriptors open, under their numbers here, and the capabilities
/// that the calling thread has, though it may not be root.
pub fn spawn_heir(command: &mut Command, descriptors: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let bequeath = move || {
        for &descriptor in &descriptors {
            #[allow(unsafe_code)]
            // SAFETY: no memory is touched.
            check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) })?;
        }
        keep_capabilities_across_exec();
        Ok(())
    };
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec the child only makes system calls. It takes no lock and allocates
    // nothing, which another thread could have been in the middle of.
    unsafe {
        command.pre_exec(bequeath);
    }
    command.spawn()
}

/// Only what is inheritable and ambient survives the execution of another program by somebody who is
/// not root. A kernel that does not allow it leaves the program with less: it says what it misses.
fn keep_capabilities_across_exec() {
    let Ok(sets) = rustix::thread::capabilities(None) else { return };
    if sets.permitted.is_empty() || rustix::process::geteuid().is_root() {
        return;
    }
    let sets = CapabilitySets { inheritable: sets.permitted, ..sets };
    if rustix::thread::set_capabilities(None, sets).is_ok() {
        for capability in sets.permitted.iter() {
            let _ = rustix::thread::configure_capability_in_ambient_set(capability, true);
        }
    }
}

// Limits.

/// How many descriptors the process may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// The limit in force; `None`: unlimited.
    pub soft: Option<u64>,
    /// How far it could be raised.
    pub hard: Option<u64>,
}

pub fn open_files() -> OpenFiles {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    OpenFiles { soft: current, hard: maximum }
}

/// Sets both limits (`worker_rlimit_nofile`), or without a number raises the soft one to the hard
/// one: all shards share what is meant for one of nginx's workers.
pub fn raise_nofile(limit: Option<u64>) -> io::Result<()> {
    let maximum = limit.or(open_files().hard);
    Ok(rustix::process::setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// `worker_rlimit_core`, in bytes.
pub fn limit_core(size: u64) -> io::Result<()> {
    let limit = Rlimit { current: Some(size), maximum: Some(size) };
    Ok(rustix::process::setrlimit(Resource::Core, limit)?)
}

/// The calling thread.
pub fn this_thread() -> Pid {
    rustix::thread::gettid()
}

/// A thread's nice value (`worker_priority`).
pub fn set_priority(thread: Pid, nice: i32) -> io::Result<()> {
    Ok(rustix::process::setpriority_process(Some(thread), nice)?)
}

/// That of the calling thread, which those that it starts have too.
pub fn priority() -> io::Result<i32> {
    Ok(rustix::process::getpriority_process(Some(this_thread()))?)
}

// Cores.

/// The cores that the process may run on, ascending. Empty only when the kernel does not tell.
pub fn available_cores() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// Keeps a thread on these cores.
pub fn pin(thread: Pid, cores: &[usize]) -> io::Result<()> {
    if let [core] = *cores
        && thread == this_thread()
        && core_affinity::set_for_current(core_affinity::CoreId { id: core })
    {
        return Ok(());
    }
    // Several cores, or a reason why not to be told.
    let mut set = CpuSet::new();
    for &core in cores.iter().filter(|&&core| core < CpuSet::MAX_CPU) {
        set.set(core);
    }
    Ok(rustix::thread::sched_setaffinity(Some(thread), &set)?)
}

// Who the process is.

/// Whether root started the process, whoever it is by now. First asked before
/// [`drop_privileges`], when the configuration is read.
pub fn started_by_root() -> bool {
    *BY_ROOT.get_or_init(|| rustix::process::geteuid().is_root())
}

/// Whether the process still is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

static BY_ROOT: OnceLock<bool> = OnceLock::new();

/// Tells that the process goes on with what another began. If that had been root and has handed on
/// what [`drop_privileges`] leaves, root has started this one too.
pub fn succeed() {
    let Ok(CapabilitySets { permitted, .. }) = rustix::thread::capabilities(None) else { return };
    if permitted.contains(FILES_OF_ANYBODY) {
        let _ = BY_ROOT.set(true);
    }
}

/// Whom to serve as: a user and a group, looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    name: CString,
    pub user: u32,
    pub group: u32,
}

/// `user` names somebody who is not there.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnknownIdentity {
    #[error("getpwnam(\"{0}\") failed")]
    User(String),
    #[error("getgrnam(\"{0}\") failed")]
    Group(String),
}

/// A step on the way to another identity that the kernel did not allow.
#[derive(Debug, Error)]
#[error("{call} failed ({})", Errno::of(source))]
pub struct DropError {
    /// `setuid(65534)`
    call: String,
    source: io::Error,
}

impl Identity {
    /// Looks up a user, and a group or else the group with the user's name.
    pub fn find(user: &str, group: Option<&str>) -> Result<Self, UnknownIdentity> {
        let unknown = || UnknownIdentity::User(user.to_owned());
        let name = CString::new(user).map_err(|_| unknown())?;
        let id = user_id(&name).ok_or_else(unknown)?;
        let group = group.unwrap_or(user);
        let group_id = CString::new(group).ok().and_then(|name| group_id(&name));
        let group = group_id.ok_or_else(|| UnknownIdentity::Group(group.to_owned()))?;
        Ok(Identity { name, user: id, group })
    }

    /// The user that root serves as when the configuration names none. Its group is called
    /// differently on different systems.
    pub fn nobody() -> Result<Self, UnknownIdentity> {
        Self::find("nobody", None).or_else(|_| Self::find("nobody", Some("nogroup")))
    }

    pub fn is_root(&self) -> bool {
        self.user == 0
    }

    /// Whether the process is that already.
    pub fn is_ours(&self) -> bool {
        rustix::process::geteuid().as_raw() == self.user
            && rustix::process::getegid().as_raw() == self.group
    }
}

/// Files of any owner (configuration, logs, pid), temporary directories for another owner.
const FILES_OF_ANYBODY: CapabilitySet =
    CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::CHOWN).union(CapabilitySet::FOWNER);

/// What the master still needs when it is root no more: ports below 1024, files, limits and
/// priorities.
const KEPT: CapabilitySet = FILES_OF_ANYBODY
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::SYS_NICE);

/// Lets the whole process be `identity` for good. The calling thread keeps the capabilities that
/// loading another configuration takes, and so do threads it starts, until they call
/// [`clear_capabilities`]. Root that stays root stays as it is.
///
/// Core dumps stay off after this (`PR_SET_DUMPABLE`): who may read the memory of one thread could
/// write to the one with the capabilities.
///
/// A process that is not root any more, because it was executed by one that has done this, stays who
/// it is and keeps the same.
pub fn drop_privileges(identity: &Identity) -> Result<(), DropError> {
    let Identity { name, user, group } = identity;
    let failed = |call: String| |source: io::Error| DropError { call, source };

    if !rustix::process::geteuid().is_root() {
        // Who it was started by has done it: what executing a program undoes is left.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|e| failed("prctl(PR_SET_DUMPABLE, 0)".to_owned())(e.into()))?;
        return reduce_capabilities().map_err(failed("capset()".to_owned()));
    }
    #[allow(unsafe_code)]
    // SAFETY: no memory is passed; the C library makes every thread follow.
    check(unsafe { libc::setgid(*group) }).map_err(failed(format!("setgid({group})")))?;
    #[allow(unsafe_code)]
    // SAFETY: `name` ends with a zero; the C library makes every thread follow.
    check(unsafe { libc::initgroups(name.as_ptr(), *group) })
        .map_err(failed(format!("initgroups({}, {group})", name.to_string_lossy())))?;
    if !identity.is_root() {
        rustix::thread::set_keep_capabilities(true)
            .map_err(|e| failed("prctl(PR_SET_KEEPCAPS, 1)".to_owned())(e.into()))?;
    }
    #[allow(unsafe_code)]
    // SAFETY: no memory is passed; the C library makes every thread follow.
    check(unsafe { libc::setuid(*user) }).map_err(failed(format!("setuid({user})")))?;
    if identity.is_root() {
        return Ok(());
    }
    reduce_capabilities().map_err(failed("capset()".to_owned()))
}

fn reduce_capabilities() -> io::Result<()> {
    let kept = rustix::thread::capabilities(None)?.permitted & KEPT;
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Gives up, for the calling thread, whatever [`drop_privileges`] kept.
pub fn clear_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// More than any entry of the user or the group database takes, short of groups with thousands of
/// members.
const ENTRY_BYTES_MAX: usize = 64 << 10;

fn user_id(name: &CString) -> Option<u32> {
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut buffer = vec![0; ENTRY_BYTES_MAX];
    let mut found = std::ptr::null_mut();
    #[allow(unsafe_code)]
    // SAFETY: the library writes to `entry`, to `buffer` within its length and to `found`, which
    // afterwards is null or points to `entry`.
    unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            entry.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        );
        found.as_ref().map(|entry| entry.pw_uid)
    }
}

fn group_id(name: &CString) -> Option<u32> {
    let mut entry = MaybeUninit::<libc::group>::uninit();
    let mut buffer = vec![0; ENTRY_BYTES_MAX];
    let mut found = std::ptr::null_mut();
    #[allow(unsafe_code)]
    // SAFETY: as in `user_id`.
    unsafe {
        libc::getgrnam_r(
            name.as_ptr(),
            entry.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        );
        found.as_ref().map(|entry| entry.gr_gid)
    }
}

// Signals.

/// Signals that are waited for instead of interrupting: blocked in the thread that made the set and
/// in every thread it starts afterwards.
pub struct BlockedSignals(libc::sigset_t);

/// A signal, and the process it came from; `None` when it came from the kernel, as Ctrl-C does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedSignal {
    pub number: c_int,
    pub sender: Option<u32>,
}

impl BlockedSignals {
    /// Blocks these signals. One that comes before it is waited for is kept.
    pub fn block(numbers: &[c_int]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        #[allow(unsafe_code)]
        // SAFETY: `sigemptyset` makes `set` a set; the others get a set or an unwanted old one.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for &number in numbers {
                check(libc::sigaddset(&raw mut set, number))?;
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
                0 => Ok(BlockedSignals(set)),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }

    /// Waits for one of the signals.
    pub fn wait(&self) -> io::Result<ReceivedSignal> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        loop {
            #[allow(unsafe_code)]
            // SAFETY: the set is one; the kernel fills in `info`, whose zeroes are one too.
            let (number, info) = unsafe {
                (libc::sigwaitinfo(&raw const self.0, info.as_mut_ptr()), info.assume_init_ref())
            };
            if number >= 0 {
                #[allow(unsafe_code)]
                // SAFETY: signals sent by `kill` and by the terminal carry the sender or zero.
                let sender = unsafe { info.si_pid() };
                let sender = u32::try_from(sender).ok().filter(|&sender| sender != 0);
                return Ok(ReceivedSignal { number, sender });
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// What a C function that answers -1 has failed with.
fn check(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn request_ids_are_hex_and_differ() {
        let (one, other) = (random_hex(), random_hex());
        assert!(one.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte)));
        assert_ne!(one, other);
    }

    #[test]
    fn tcp_info_of_a_connection_and_of_a_file() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(tcp_info(stream.as_fd()).unwrap().tcpi_snd_mss > 0);
        assert!(tcp_info(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
        set_deferred(listener.as_fd(), true).unwrap();
        set_fastopen(listener.as_fd(), 5).unwrap();
    }

    #[test]
    fn only_what_paces_is_replaced() {
        use rustix::net::sockopt::{set_tcp_congestion, tcp_congestion};
        for (before, after) in [("bbr", "reno"), ("cubic", "cubic"), ("reno", "reno")] {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            // The kernel may not have it, or not for this user.
            if set_tcp_congestion(&listener, before).is_ok() {
                send_unpaced(listener.as_fd());
                assert_eq!(tcp_congestion(&listener).unwrap(), after);
            }
        }
    }

    #[test]
    fn root_is_found_and_others_are_not() {
        let root = Identity::find("root", None).unwrap();
        assert_eq!((root.user, root.group, root.is_root()), (0, 0, true));
        let unknown = Identity::find("no such user", None).unwrap_err();
        assert_eq!(unknown.to_string(), "getpwnam(\"no such user\") failed");
        let unknown = Identity::find("root", Some("no such group")).unwrap_err();
        assert_eq!(unknown.to_string(), "getgrnam(\"no such group\") failed");
        assert!(Identity::find("a\0b", None).is_err());
    }

    #[test]
    fn a_thread_is_pinned_to_a_core() {
        let cores = available_cores();
        let last = *cores.last().unwrap();
        std::thread::spawn(move || {
            pin(this_thread(), &[last]).unwrap();
            assert_eq!(available_cores(), [last]);
        })
        .join()
        .unwrap();
        assert_eq!(available_cores(), cores);
    }

    #[test]
    fn a_blocked_signal_is_received_with_its_sender() {
        std::thread::spawn(|| {
            let signals = BlockedSignals::block(&[libc::SIGURG]).unwrap();
            let pid = rustix::process::getpid();
            let tid = rustix::thread::gettid();
            #[allow(unsafe_code)]
            // SAFETY: a signal to this very thread.
            unsafe {
                libc::syscall(
                    libc::SYS_tgkill,
                    pid.as_raw_nonzero().get(),
                    tid.as_raw_nonzero().get(),
                    libc::SIGURG,
                );
            }
            let received = signals.wait().unwrap();
            assert_eq!(received.number, libc::SIGURG);
            assert_eq!(received.sender, Some(std::process::id()));
        })
        .join()
        .unwrap();
    }
}
