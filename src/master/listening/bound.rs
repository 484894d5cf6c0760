//! The sockets of one address, for as long as the process has any.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use crate::error_log::{Errno, Level};
use crate::http::server::{Listen, ListenAddress, SoKeepalive};
use crate::master::failure::Failure;
use crate::master::report::Report;
use crate::master::upgrade::Relatives;
use crate::os;

/// The sockets of one address.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listen: Listen,
    /// One for each shard, or fewer that are shared, or more of which shards have several.
    pub(super) sockets: Vec<Socket>,
    /// How many of them, the first ones, were there before the process was, and whose they are.
    pub(super) inherited: usize,
    pub(super) origin: Origin,
    relatives: Arc<Relatives>,
    /// Those of shards that are not any more, in the order of their numbers: they come after the
    /// others'.
    pub(super) retired: Vec<Socket>,
    pub(super) file: Option<SocketFile>,
    /// Nobody can connect any more.
    is_ignoring: bool,
}

/// Who opened a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Own,
    /// An old binary's process.
    Predecessor,
    /// A service manager, which keeps it.
    Manager,
}

impl Origin {
    /// Whether another process has it too.
    fn is_shared(self, relatives: &Relatives) -> bool {
        match self {
            Origin::Own => relatives.have_successor(),
            Origin::Predecessor => relatives.have_successor() || relatives.have_predecessor(),
            Origin::Manager => true,
        }
    }
}

/// The file of a unix socket. Removed when dropped, unless another process listens on it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    pub(super) origin: Origin,
    relatives: Arc<Relatives>,
}

/// Binds without `SO_REUSEPORT`, to see whether anybody else has the address. A unix socket is
/// never shared, so binding it in earnest is the trial.
pub(super) fn try_out(listen: &Listen) -> Result<(), Failure> {
    match &listen.address {
        ListenAddress::Inet(address) => bind(listen, &(*address).into(), &Sharing::No).map(drop),
        ListenAddress::Unix(_) => Ok(()),
    }
}

/// Whether sockets that allow it too may be bound to the same address.
#[derive(Debug)]
enum Sharing<'a> {
    No,
    /// `SO_REUSEPORT`, if need be beside a socket that is there already.
    BetweenShards {
        beside: Option<&'a Socket>,
    },
}

fn bind(listen: &Listen, address: &SockAddr, sharing: &Sharing<'_>) -> Result<Socket, Failure> {
    let failed = |call| Failure::socket(call, &listen.name);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(address.domain(), kind, None).map_err(failed("socket"))?;
    if !address.is_unix() {
        socket.set_reuse_address(true).map_err(failed("setsockopt(SO_REUSEADDR)"))?;
    }
    if let Sharing::BetweenShards { beside } = sharing {
        if let Some(other) = beside {
            // Without it the address is busy, which is said below.
            let _ = os::own_like(socket.as_fd(), other.as_fd());
        }
        socket.set_reuse_port(true).map_err(failed("setsockopt(SO_REUSEPORT)"))?;
    }
    if address.domain() == Domain::IPV6 {
        socket.set_only_v6(listen.ipv6only).map_err(failed("setsockopt(IPV6_V6ONLY)"))?;
    }
    let name = listen.name.to_string();
    socket.bind(address).map_err(|source| Failure::Bind { name, source })?;
    Ok(socket)
}

impl Bound {
    /// Sockets for so many shards. `beside`: one that has the address, or one that overlaps it.
    pub(super) fn beside(
        listen: &Listen,
        shards: usize,
        beside: Option<&Socket>,
        relatives: &Arc<Relatives>,
        report: &Report,
    ) -> Result<Self, Failure> {
        let (origin, relatives) = (Origin::Own, Arc::clone(relatives));
        let (sockets, file) = match &listen.address {
            ListenAddress::Inet(address) => {
                let address = SockAddr::from(*address);
                let sharing = Sharing::BetweenShards { beside };
                let sockets = (0..shards).map(|_| bind(listen, &address, &sharing));
                (sockets.collect::<Result<_, _>>()?, None)
            }
            ListenAddress::Unix(path) => {
                let address =
                    SockAddr::unix(path).map_err(Failure::socket("bind", &listen.name))?;
                let socket = bind(listen, &address, &Sharing::No)?;
                let (path, relatives) = (path.clone(), Arc::clone(&relatives));
                let file = SocketFile { path, origin, relatives };
                fs::set_permissions(&file.path, Permissions::from_mode(0o666))
                    .map_err(Failure::path("chmod", &file.path))?;
                (vec![socket], Some(file))
            }
        };
        for socket in &sockets {
            set_options(socket, listen, report);
        }
        let bound = Bound {
            listen: listen.clone(),
            sockets,
            inherited: 0,
            origin,
            relatives,
            retired: Vec::new(),
            file,
            is_ignoring: false,
        };
        bound.listen()?;
        Ok(bound)
    }

    /// What is to be known of it beside its address is told by a configuration that names it.
    pub(super) fn inherited(
        address: ListenAddress,
        socket: Socket,
        origin: Origin,
        relatives: &Arc<Relatives>,
    ) -> Self {
        let path = match &address {
            ListenAddress::Unix(path) if origin == Origin::Predecessor => Some(path.clone()),
            _ => None,
        };
        let relatives = Arc::clone(relatives);
        let file = path.map(|path| SocketFile { path, origin, relatives: Arc::clone(&relatives) });
        let listen = Listen {
            address,
            name: "".into(),
            backlog: 0,
            ipv6only: true,
            rcvbuf: None,
            sndbuf: None,
            so_keepalive: None,
            fastopen: None,
            deferred: false,
        };
        let (sockets, retired) = (vec![socket], Vec::new());
        Bound {
            listen,
            sockets,
            inherited: 1,
            origin,
            relatives,
            retired,
            file,
            is_ignoring: false,
        }
    }

    pub(super) fn is_shared(&self) -> bool {
        self.origin.is_shared(&self.relatives)
    }

    /// Whether it has this address, or could have it again. A unix socket without its file cannot.
    pub(super) fn is_of(&self, listen: &Listen) -> bool {
        let is_gone = self.is_ignoring && matches!(self.listen.address, ListenAddress::Unix(_));
        self.listen.address == listen.address && !is_gone
    }

    /// Every socket is some shard's, and every shard has one. A shard that is not any more has what has
    /// retired with it.
    pub(super) fn sockets_of(&self, shard: usize, shards: usize) -> impl Iterator<Item = &Socket> {
        let retired = shard.checked_sub(self.sockets.len()).and_then(|at| self.retired.get(at));
        let count = self.sockets.len();
        let first = if shard < count { Some(shard) } else { shard.checked_rem(count) };
        let first = if retired.is_some() { count } else { first.unwrap_or(0) };
        retired.into_iter().chain(self.sockets.iter().skip(first).step_by(shards.max(1)))
    }

    /// Has no sockets for more shards than these. The first ones of a group keep their places in it
    /// whatever comes and goes behind them.
    pub(super) fn retire_down_to(&mut self, shards: usize, report: &Report) {
        if self.is_shared() {
            return;
        }
        if self.sockets.len() > shards.max(1) {
            let mut retired = self.sockets.split_off(shards.max(1));
            retired.append(&mut self.retired);
            self.retired = retired;
        }
        self.choose(report);
    }

    /// Needs sockets again that were about to be closed.
    pub(super) fn take_back(&mut self, shards: usize) {
        let missing = shards.saturating_sub(self.sockets.len()).min(self.retired.len());
        self.sockets.extend(self.retired.drain(..missing));
    }

    /// Has the kernel deal out connections among those that have not retired.
    pub(super) fn choose(&self, report: &Report) {
        let Some(first) = self.sockets.first() else { return };
        if self.retired.is_empty() {
            // It fails where there is nothing to undo.
            let _ = os::choose_among_all(first.as_fd());
        } else if let Err(e) = os::choose_among_first(first.as_fd(), self.sockets.len() as u32) {
            let option = "SO_ATTACH_REUSEPORT_CBPF";
            report_refused(option, &self.listen, &e, report);
        }
    }

    /// Nobody can connect to it any more.
    pub(super) fn ignore_new(&mut self, report: &Report) {
        if self.is_shared() || std::mem::replace(&mut self.is_ignoring, true) {
            return;
        }
        drop(self.file.take());
        if let ListenAddress::Inet(_) = self.listen.address {
            for socket in self.sockets.iter().chain(&self.retired) {
                if let Err(e) = os::ignore_new(socket) {
                    report_refused("SO_ATTACH_FILTER", &self.listen, &e, report);
                }
            }
        }
    }

    /// New connections go to none of its sockets that the old binary's process does not have: that
    /// goes on, and they are about to be closed.
    pub(super) fn leave_to_predecessor(&mut self, report: &Report) {
        let (inherited, first) = (self.inherited, self.sockets.first());
        if self.origin == Origin::Predecessor
            && self.relatives.have_predecessor()
            && inherited < self.sockets.len()
            && let Some(first) = first
            && let Err(e) = os::choose_among_first(first.as_fd(), inherited as u32)
        {
            report_refused("SO_ATTACH_REUSEPORT_CBPF", &self.listen, &e, report);
        }
    }

    pub(super) fn listen(&self) -> Result<(), Failure> {
        let Listen { name, backlog, .. } = &self.listen;
        self.sockets
            .iter()
            .try_for_each(|socket| socket.listen(*backlog))
            .map_err(|source| Failure::Listen { name: name.to_string(), backlog: *backlog, source })
    }

    /// Follows what can change while a socket is open: its options and the backlog.
    pub(super) fn change(&mut self, listen: &Listen, report: &Report) {
        if std::mem::take(&mut self.is_ignoring) {
            for socket in self.sockets.iter().chain(&self.retired) {
                if let Err(e) = socket.detach_filter() {
                    report_refused("SO_DETACH_FILTER", &self.listen, &e, report);
                }
            }
        }
        if self.listen == *listen {
            return;
        }
        self.listen = listen.clone();
        for socket in &self.sockets {
            set_options(socket, listen, report);
            // The one option that is undone, as in nginx.
            if let ListenAddress::Inet(_) = listen.address
                && !listen.deferred
                && let Err(e) = os::set_deferred(socket.as_fd(), false)
            {
                report_refused("TCP_DEFER_ACCEPT", listen, &e, report);
            }
        }
        if let Err(failure) = self.listen() {
            report.say(Level::Alert, format_args!("{failure}, ignored"));
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.origin.is_shared(&self.relatives) {
            // Removed by somebody already: nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The options that a socket can do without: one that is refused is logged, as nginx does.
fn set_options(socket: &Socket, listen: &Listen, report: &Report) {
    let set = |option: &str, result: io::Result<()>| {
        if let Err(e) = result {
            report_refused(option, listen, &e, report);
        }
    };
    if let Some(size) = listen.rcvbuf {
        set("SO_RCVBUF", socket.set_recv_buffer_size(size));
    }
    if let Some(size) = listen.sndbuf {
        set("SO_SNDBUF", socket.set_send_buffer_size(size));
    }
    let ListenAddress::Inet(address) = listen.address else { return };
    if address.ip().is_loopback() {
        os::send_unpaced(socket.as_fd());
    }
    if let Some(keepalive) = listen.so_keepalive {
        set("SO_KEEPALIVE", set_keepalive(socket, keepalive));
    }
    if let Some(queue) = listen.fastopen {
        set("TCP_FASTOPEN", os::set_fastopen(socket.as_fd(), queue));
    }
    if listen.deferred {
        set("TCP_DEFER_ACCEPT", os::set_deferred(socket.as_fd(), true));
    }
}

fn report_refused(option: &str, listen: &Listen, error: &io::Error, report: &Report) {
    let (name, errno) = (&listen.name, Errno::of(error));
    report.say(Level::Alert, format_args!("setsockopt({option}) {name} failed, ignored ({errno})"));
}

/// Accepted connections inherit it.
fn set_keepalive(socket: &Socket, keepalive: SoKeepalive) -> io::Result<()> {
    let SoKeepalive { on, idle_s, interval_s, count } = keepalive;
    if !on {
        return socket.set_keepalive(false);
    }
    let mut parameters = TcpKeepalive::new();
    if let Some(idle) = idle_s {
        parameters = parameters.with_time(Duration::from_secs(idle));
    }
    if let Some(interval) = interval_s {
        parameters = parameters.with_interval(Duration::from_secs(interval));
    }
    if let Some(count) = count {
        parameters = parameters.with_retries(count);
    }
    socket.set_tcp_keepalive(&parameters)
}
