//! Listening sockets. They belong to the process, not to a configuration: an address that a new
//! configuration still names keeps its sockets, because closing one resets what waits in its queue.
//!
//! Every shard has a socket of its own for an IP address (`SO_REUSEPORT`), so that the kernel deals
//! out connections without a lock between shards. That option would let a second instance, started
//! by mistake, take part in silence; so an address is first tried without it.
//!
//! Sockets may also be inherited, from an old binary or a service manager. Each has a queue of its own
//! that somebody has to accept from: when there are more sockets than shards, a shard has several of
//! an address, and when there are fewer and no more can be bound, shards share them.

use std::fs::{self, Permissions};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::failure::Failure;
use super::report::Report;
use super::upgrade::Relatives;
use super::upgrade::inherited::InheritedSocket;
use crate::channel;
use crate::error_log::{Errno, Level};
use crate::http::server::{Address, AddressId, Listen, ListenAddress, SoKeepalive};
use crate::os;

/// How often a busy address is tried, and the pause after each failure: another instance may be on
/// its way out.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// All listening sockets of the process.
#[derive(Debug)]
pub struct Listening {
    shards: usize,
    relatives: Arc<Relatives>,
    /// What the configuration in force listens on.
    open: Vec<Bound>,
    /// What it listens on no more, while shards may still have copies.
    leaving: Vec<Bound>,
    /// The files of sockets that are closed.
    files: Vec<SocketFile>,
}

/// The sockets of one address.
#[derive(Debug)]
struct Bound {
    listen: Listen,
    /// One for each shard, or fewer that are shared, or more of which shards have several.
    sockets: Vec<Socket>,
    file: Option<SocketFile>,
    origin: Origin,
}

/// Who opened a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Own,
    /// An old binary's process.
    Predecessor,
    /// A service manager, which keeps it.
    Manager,
}

/// The file of a unix socket. Removed when dropped, unless another process listens on it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    origin: Origin,
    relatives: Arc<Relatives>,
}

/// Addresses that are open for a configuration that is not in force yet. Dropping it closes them.
#[must_use]
#[derive(Debug)]
pub struct Opened(Vec<Bound>);

impl Listening {
    pub fn new(shards: usize, relatives: Arc<Relatives>) -> Self {
        Listening { shards, relatives, open: Vec::new(), leaving: Vec::new(), files: Vec::new() }
    }

    /// Has these sockets from the beginning. Those of addresses that the configuration then does not
    /// name are closed by [`Listening::close_leaving`].
    pub fn inherit(&mut self, sockets: Vec<InheritedSocket>) {
        for InheritedSocket { address, socket, is_activated } in sockets {
            let known = self.leaving.iter_mut().find(|bound| bound.listen.address == address);
            if let Some(bound) = known {
                bound.sockets.push(socket);
            } else {
                let origin = if is_activated { Origin::Manager } else { Origin::Predecessor };
                self.leaving.push(Bound::inherited(address, socket, origin, &self.relatives));
            }
        }
    }

    /// What a new binary gets: every socket that is listened on, and whether a service manager has
    /// opened it.
    pub fn inheritance(&self) -> Vec<(BorrowedFd<'_>, bool)> {
        let mut sockets = Vec::new();
        for Bound { sockets: open, origin, .. } in &self.open {
            sockets.extend(open.iter().map(|socket| (socket.as_fd(), *origin == Origin::Manager)));
        }
        sockets
    }

    /// Whether other processes have some of the sockets too: then they are let go of, never shut
    /// down.
    pub fn is_shared(&self) -> bool {
        let is_shared = |bound: &Bound| match bound.origin {
            Origin::Own => self.relatives.have_successor(),
            Origin::Predecessor => {
                self.relatives.have_successor() || self.relatives.have_predecessor()
            }
            Origin::Manager => true,
        };
        self.all().any(is_shared)
    }

    /// How many shards the sockets are for.
    pub fn shards(&self) -> usize {
        self.shards
    }

    /// Opens what `addresses` names and the process does not have yet. Changes nothing that is in
    /// use; [`Listening::adopt`] does.
    pub fn open(&self, addresses: &[Address], report: &Report) -> Result<Opened, Failure> {
        let mut waiting: Vec<&Listen> = addresses
            .iter()
            .map(|address| &address.listen)
            .filter(|listen| self.all().all(|bound| bound.listen.address != listen.address))
            .collect();
        let mut opened = self.open_for_every_shard(addresses, report)?;
        for _ in 0..TRIES {
            waiting = self.open_what_is_free(&waiting, &mut opened, report)?;
            if waiting.is_empty() {
                return Ok(Opened(opened));
            }
            report.notice(format_args!("try again to bind() after {}ms", PAUSE.as_millis()));
            thread::sleep(PAUSE);
        }
        Err(Failure::StillBusy)
    }

    /// Binds more sockets to addresses that have fewer than there are shards. Where that is not allowed,
    /// shards share: an old binary or a service manager need not have set `SO_REUSEPORT`.
    fn open_for_every_shard(
        &self,
        addresses: &[Address],
        report: &Report,
    ) -> Result<Vec<Bound>, Failure> {
        let mut opened = Vec::new();
        for Address { listen, .. } in addresses {
            let bound = self.all().find(|bound| bound.listen.address == listen.address);
            let Some((bound, first)) = bound.and_then(|b| Some((b, b.sockets.first()?))) else {
                continue;
            };
            let missing = self.shards.saturating_sub(bound.sockets.len());
            if missing == 0
                || matches!(listen.address, ListenAddress::Unix(_))
                || !first.reuse_port().unwrap_or(false)
            {
                continue;
            }
            match Bound::beside(listen, missing, Some(first), &self.relatives, report) {
                Ok(more) => opened.push(more),
                Err(failure) if failure.is_busy() => {
                    report.notice(format_args!("{failure}, shards share sockets"));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(opened)
    }

    /// One try; returns the addresses that are busy. All are tried out before any is bound, because
    /// `*:80` and `127.0.0.1:80` are in each other's way only without `SO_REUSEPORT`.
    fn open_what_is_free<'a>(
        &self,
        waiting: &[&'a Listen],
        opened: &mut Vec<Bound>,
        report: &Report,
    ) -> Result<Vec<&'a Listen>, Failure> {
        let mut busy = Vec::new();
        let mut free = Vec::new();
        for &listen in waiting {
            let mut known = self.all().chain(&*opened);
            let beside = known.find(|bound| overlap(&bound.listen, listen));
            match if beside.is_some() { Ok(()) } else { try_out(listen) } {
                Ok(()) => free.push(listen),
                Err(failure) => report_busy(failure, report).map(|()| busy.push(listen))?,
            }
        }
        for listen in free {
            let known = self.all().find(|bound| overlap(&bound.listen, listen));
            let beside = known.and_then(|bound| bound.sockets.first());
            match Bound::beside(listen, self.shards, beside, &self.relatives, report) {
                Ok(bound) => opened.push(bound),
                Err(failure) => report_busy(failure, report).map(|()| busy.push(listen))?,
            }
        }
        Ok(busy)
    }

    /// Makes `addresses` what the process listens on, `opened` being the new ones among them. What
    /// is no longer named stays open until [`Listening::close_leaving`], and can be taken back.
    pub fn adopt(&mut self, opened: Opened, addresses: &[Address], report: &Report) {
        let mut known: Vec<Bound> = self.open.drain(..).chain(self.leaving.drain(..)).collect();
        known.extend(opened.0);
        for mut bound in known {
            let is_same = |other: &&mut Bound| other.listen.address == bound.listen.address;
            if let Some(other) = self.open.iter_mut().find(is_same) {
                other.sockets.append(&mut bound.sockets);
                continue;
            }
            match addresses.iter().find(|address| address.listen.address == bound.listen.address) {
                Some(address) => {
                    bound.change(&address.listen, report);
                    self.open.push(bound);
                }
                None => self.leaving.push(bound),
            }
        }
    }

    /// Copies of the sockets for one shard. `addresses` are those of the configuration in force.
    pub fn of_shard(
        &self,
        shard: usize,
        addresses: &[Address],
    ) -> Result<Vec<channel::Listening>, Failure> {
        let mut listening = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            let listen = &address.listen;
            let bound = self.open.iter().find(|bound| bound.listen.address == listen.address);
            let sockets = bound.map(|bound| bound.sockets.as_slice()).unwrap_or_default();
            for socket in of_shard(sockets, shard, self.shards) {
                let copy = socket.try_clone().map_err(Failure::socket("dup", &listen.name))?;
                listening.push(channel::Listening {
                    name: listen.name.clone(),
                    address: AddressId(index as u32),
                    socket: copy.into(),
                });
            }
        }
        Ok(listening)
    }

    /// Closes what the configuration in force does not name, and removes its socket files. To be
    /// called when no shard accepts from it any more.
    pub fn close_leaving(&mut self) {
        for bound in self.leaving.drain(..) {
            // Those of an old binary's process, which may still listen there, are removed at the end.
            let file = bound.file.filter(|file| file.origin == Origin::Predecessor);
            self.files.extend(file);
        }
    }

    /// Closes every socket at once, so that clients are refused when the shards have let go of
    /// theirs. Socket files stay until the value is dropped.
    pub fn close(&mut self) {
        for bound in self.open.drain(..).chain(self.leaving.drain(..)) {
            self.files.extend(bound.file);
        }
    }

    /// Ends listening for every copy of the sockets, those of shards that have ended without closing
    /// theirs included, and removes socket files.
    pub fn shut_down(&mut self) {
        for socket in self.all().flat_map(|bound| &bound.sockets) {
            // It listened, so there is something to end.
            let _ = socket.shutdown(Shutdown::Read);
        }
        *self = Listening::new(self.shards, Arc::clone(&self.relatives));
    }

    fn all(&self) -> impl Iterator<Item = &Bound> {
        self.open.iter().chain(&self.leaving)
    }
}

/// The sockets of an address that are one shard's, out of so many shards: every socket is some
/// shard's, and every shard has one.
fn of_shard(sockets: &[Socket], shard: usize, shards: usize) -> impl Iterator<Item = &Socket> {
    let first = if sockets.len() < shards { shard.checked_rem(sockets.len()) } else { Some(shard) };
    sockets.iter().skip(first.unwrap_or(0)).step_by(shards.max(1))
}

/// Tries every address for `-t`, and leaves nothing behind. One that is in use is no error: most
/// likely it is the running instance that uses it.
pub fn try_out_all(addresses: &[Address], report: &Report) -> Result<(), Failure> {
    for Address { listen, .. } in addresses {
        let tried = match listen.address {
            ListenAddress::Inet(_) => try_out(listen),
            ListenAddress::Unix(_) => {
                Bound::beside(listen, 1, None, &Relatives::new(None), report).map(drop)
            }
        };
        match tried {
            Err(failure) if !failure.is_busy() => return Err(failure),
            _ => {}
        }
    }
    Ok(())
}

/// A busy address is named, and tried again later; any other failure is final.
fn report_busy(failure: Failure, report: &Report) -> Result<(), Failure> {
    if !failure.is_busy() {
        return Err(failure);
    }
    report.say(Level::Emerg, format_args!("{failure}"));
    Ok(())
}

/// Whether two addresses can be bound side by side only with `SO_REUSEPORT` on both.
fn overlap(one: &Listen, other: &Listen) -> bool {
    match (&one.address, &other.address) {
        (ListenAddress::Inet(one), ListenAddress::Inet(other)) => {
            one.port() == other.port()
                && (one.ip() == other.ip()
                    || one.ip().is_unspecified()
                    || other.ip().is_unspecified())
        }
        _ => false,
    }
}

/// Binds without `SO_REUSEPORT`, to see whether anybody else has the address. A unix socket is
/// never shared, so binding it in earnest is the trial.
fn try_out(listen: &Listen) -> Result<(), Failure> {
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
        socket.set_reuse_port(true).map_err(failed("setsockopt(SO_REUSEPORT)"))?;
        if let Some(other) = beside {
            // Without it the address is busy, which is said below.
            let _ = os::own_like(socket.as_fd(), other.as_fd());
        }
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
    fn beside(
        listen: &Listen,
        shards: usize,
        beside: Option<&Socket>,
        relatives: &Arc<Relatives>,
        report: &Report,
    ) -> Result<Self, Failure> {
        let origin = Origin::Own;
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
                let relatives = Arc::clone(relatives);
                let file = SocketFile { path: path.clone(), origin, relatives };
                fs::set_permissions(path, Permissions::from_mode(0o666))
                    .map_err(Failure::path("chmod", path))?;
                (vec![socket], Some(file))
            }
        };
        for socket in &sockets {
            set_options(socket, listen, report);
        }
        let bound = Bound { listen: listen.clone(), sockets, file, origin };
        bound.listen()?;
        Ok(bound)
    }

    /// What is to be known of it beside its address is told by a configuration that names it.
    fn inherited(
        address: ListenAddress,
        socket: Socket,
        origin: Origin,
        relatives: &Arc<Relatives>,
    ) -> Self {
        let path = match &address {
            ListenAddress::Unix(path) if origin == Origin::Predecessor => Some(path.clone()),
            _ => None,
        };
        let file = path.map(|path| SocketFile { path, origin, relatives: Arc::clone(relatives) });
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
        Bound { listen, sockets: vec![socket], file, origin }
    }

    fn listen(&self) -> Result<(), Failure> {
        let Listen { name, backlog, .. } = &self.listen;
        self.sockets
            .iter()
            .try_for_each(|socket| socket.listen(*backlog))
            .map_err(|source| Failure::Listen { name: name.to_string(), backlog: *backlog, source })
    }

    /// Follows what can change while a socket is open: its options and the backlog.
    fn change(&mut self, listen: &Listen, report: &Report) {
        if self.listen == *listen {
            return;
        }
        self.listen = listen.clone();
        for socket in &self.sockets {
            set_options(socket, listen, report);
        }
        if let Err(failure) = self.listen() {
            report.say(Level::Alert, format_args!("{failure}, ignored"));
        }
    }
}

impl Opened {
    /// Nothing new.
    pub fn none() -> Self {
        Opened(Vec::new())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_others = self.relatives.have_successor()
            || self.origin == Origin::Predecessor && self.relatives.have_predecessor();
        if !is_others {
            // Removed by somebody already: nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The options that a socket can do without: one that is refused is logged, as nginx does.
fn set_options(socket: &Socket, listen: &Listen, report: &Report) {
    let set = |option: &str, result: io::Result<()>| {
        if let Err(e) = result {
            report.say(
                Level::Alert,
                format_args!(
                    "setsockopt({option}) {} failed, ignored ({})",
                    listen.name,
                    Errno::of(&e)
                ),
            );
        }
    };
    if let Some(size) = listen.rcvbuf {
        set("SO_RCVBUF", socket.set_recv_buffer_size(size));
    }
    if let Some(size) = listen.sndbuf {
        set("SO_SNDBUF", socket.set_send_buffer_size(size));
    }
    if let ListenAddress::Unix(_) = listen.address {
        return;
    }
    if let Some(keepalive) = listen.so_keepalive {
        set("SO_KEEPALIVE", set_keepalive(socket, keepalive));
    }
    if let Some(queue) = listen.fastopen {
        set("TCP_FASTOPEN", os::set_fastopen(socket.as_fd(), queue));
    }
    if listen.deferred {
        set("TCP_DEFER_ACCEPT", os::set_deferred(socket.as_fd()));
    }
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

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::error_log::{Destination, Files};
    use crate::http::server::{ServerId, ServerNames};

    fn address(address: ListenAddress) -> Address {
        let name = match &address {
            ListenAddress::Inet(address) => address.to_string(),
            ListenAddress::Unix(path) => format!("unix:{}", path.display()),
        };
        let listen = Listen {
            address,
            name: name.into(),
            backlog: 16,
            ipv6only: true,
            rcvbuf: Some(64 << 10),
            sndbuf: None,
            so_keepalive: Some(SoKeepalive {
                on: true,
                idle_s: Some(60),
                interval_s: None,
                count: Some(3),
            }),
            fastopen: Some(3),
            deferred: false,
        };
        Address {
            listen,
            proxy_protocol: false,
            default_server: ServerId(0),
            names: ServerNames::default(),
        }
    }

    fn inet(text: &str) -> Address {
        address(ListenAddress::Inet(text.parse().unwrap()))
    }

    fn free() -> SocketAddr {
        TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
    }

    fn report() -> Report {
        Report::first(&Destination::File("/dev/null".into()), &Files::default())
    }

    #[test]
    fn each_shard_has_a_socket_of_its_own_and_nobody_else_gets_the_port() {
        let (report, taken) = (report(), free());
        let addresses = [inet(&taken.to_string())];
        let mut listening = Listening::new(2, Relatives::new(None));
        let opened = listening.open(&addresses, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        for shard in [0, 1] {
            let copies = listening.of_shard(shard, &addresses).unwrap();
            assert_eq!((copies.len(), copies[0].address), (1, AddressId(0)));
        }
        let busy = try_out(&addresses[0].listen).unwrap_err();
        assert!(busy.is_busy(), "{busy}");
        assert!(try_out_all(&addresses, &report).is_ok());

        // Loaded again: nothing is opened. Then without it: closed when the shards have let go.
        let again = listening.open(&addresses, &report).unwrap();
        assert!(again.0.is_empty());
        listening.adopt(again, &[], &report);
        TcpStream::connect(taken).unwrap();
        listening.close_leaving();
        TcpStream::connect(taken).unwrap_err();
    }

    #[test]
    fn every_socket_is_some_shards_and_every_shard_has_one() {
        let sockets: Vec<Socket> = (0..5)
            .map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap().into())
            .map(|listener: std::os::fd::OwnedFd| listener.into())
            .collect();
        let of = |count: usize, shard, shards| -> Vec<usize> {
            let port = |socket: &Socket| socket.local_addr().unwrap().as_socket().unwrap().port();
            let number = |socket| sockets.iter().position(|other| port(other) == port(socket));
            of_shard(&sockets[..count], shard, shards)
                .map(|socket| number(socket).unwrap())
                .collect()
        };
        assert_eq!([of(2, 0, 2), of(2, 1, 2)], [[0], [1]]);
        assert_eq!([of(5, 0, 2), of(5, 1, 2)], [vec![0, 2, 4], vec![1, 3]]);
        assert_eq!([of(2, 0, 3), of(2, 1, 3), of(2, 2, 3)], [[0], [1], [0]]);
        assert_eq!([of(1, 0, 2), of(1, 1, 2)], [[0], [0]]);
        assert!(of(0, 0, 2).is_empty());
    }

    fn handed_on(listening: &Listening, is_activated: bool) -> Vec<InheritedSocket> {
        let sockets = listening.open.iter().flat_map(|bound| &bound.sockets);
        let inherit = |socket: &Socket| {
            let name = socket.local_addr().unwrap();
            let path = || ListenAddress::Unix(name.as_pathname().unwrap().to_owned());
            InheritedSocket {
                address: name.as_socket().map_or_else(path, ListenAddress::Inet),
                socket: socket.try_clone().unwrap(),
                is_activated,
            }
        };
        sockets.map(inherit).collect()
    }

    #[test]
    fn inherited_sockets_are_used_and_those_not_named_are_closed() {
        let (report, kept, unnamed) = (report(), free(), free());
        let both = [inet(&kept.to_string()), inet(&unnamed.to_string())];
        let mut old = Listening::new(2, Relatives::new(None));
        let opened = old.open(&both, &report).unwrap();
        old.adopt(opened, &both, &report);
        assert_eq!(old.inheritance().len(), 4);

        for (shards, of_each) in [(1, vec![2]), (2, vec![1, 1]), (3, vec![1, 1, 1])] {
            let mut new = Listening::new(shards, Relatives::new(None));
            new.inherit(handed_on(&old, false));
            let opened = new.open(&both[..1], &report).unwrap();
            assert_eq!(opened.0.len(), usize::from(shards > 2));
            new.adopt(opened, &both[..1], &report);
            assert_eq!(new.leaving.len(), 1);
            new.close_leaving();
            let of = |shard| new.of_shard(shard, &both[..1]).unwrap().len();
            assert_eq!((0..shards).map(of).collect::<Vec<_>>(), of_each);
            assert_eq!(new.inheritance().len(), shards.max(2));
        }
        // The one that has handed on goes on.
        TcpStream::connect(kept).unwrap();
        TcpStream::connect(unnamed).unwrap();
    }

    #[test]
    fn a_socket_that_nobody_may_share_is_shared_by_the_shards() {
        let report = report();
        let alone = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let addresses = [inet(&alone.local_addr().unwrap().to_string())];
        let mut listening = Listening::new(2, Relatives::new(None));
        let (address, socket) = (addresses[0].listen.address.clone(), alone.into());
        let socket: std::os::fd::OwnedFd = socket;
        listening.inherit(vec![InheritedSocket {
            address,
            socket: socket.into(),
            is_activated: true,
        }]);
        let opened = listening.open(&addresses, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        for shard in [0, 1] {
            assert_eq!(listening.of_shard(shard, &addresses).unwrap().len(), 1);
        }
        assert!(listening.is_shared());
        assert!(listening.inheritance().iter().all(|(_, is_activated)| *is_activated));
    }

    #[test]
    fn an_inherited_file_stays_while_others_listen_there() {
        let report = report();
        let path = std::env::temp_dir().join(format!("ringx-inherit-{}", std::process::id()));
        let addresses = [address(ListenAddress::Unix(path.clone()))];
        let mut old = Listening::new(1, Relatives::new(None));
        let opened = old.open(&addresses, &report).unwrap();
        old.adopt(opened, &addresses, &report);

        let start = |predecessor, named: &[Address]| {
            let mut new = Listening::new(1, Relatives::new(predecessor));
            new.inherit(handed_on(&old, false));
            let opened = new.open(named, &report).unwrap();
            new.adopt(opened, named, &report);
            new.close_leaving();
            new
        };
        let parent = rustix::process::getppid();
        let new = start(parent, &addresses);
        assert!(new.is_shared());
        drop(new);
        assert!(path.exists(), "the old process is still there");
        let new = start(None, &[]);
        assert!(path.exists(), "it is removed at the end");
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_leaving_can_be_taken_back() {
        let report = report();
        let addresses = [inet(&free().to_string())];
        let mut listening = Listening::new(1, Relatives::new(None));
        let opened = listening.open(&addresses, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        listening.adopt(Opened::none(), &[], &report);
        let opened = listening.open(&addresses, &report).unwrap();
        assert!(opened.0.is_empty());
        listening.adopt(opened, &addresses, &report);
        listening.close_leaving();
        assert_eq!(listening.of_shard(0, &addresses).unwrap().len(), 1);
    }

    #[test]
    fn all_addresses_and_one_of_them_on_one_port() {
        let (report, port) = (report(), free().port());
        let wide = inet(&format!("0.0.0.0:{port}"));
        let narrow = inet(&format!("127.0.0.1:{port}"));
        assert!(overlap(&wide.listen, &narrow.listen));
        assert!(!overlap(&narrow.listen, &inet(&format!("127.0.0.2:{port}")).listen));
        let addresses = [wide, narrow];
        let mut listening = Listening::new(1, Relatives::new(None));
        let opened = listening.open(&addresses[..1], &report).unwrap();
        listening.adopt(opened, &addresses[..1], &report);
        let opened = listening.open(&addresses, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        assert_eq!(listening.of_shard(0, &addresses).unwrap().len(), 2);
    }

    #[test]
    fn a_unix_socket_is_shared_and_removed_at_the_end() {
        let report = report();
        let path = std::env::temp_dir().join(format!("ringx-listen-{}", std::process::id()));
        let addresses = [address(ListenAddress::Unix(path.clone()))];
        try_out_all(&addresses, &report).unwrap();
        assert!(!path.exists());
        let mut listening = Listening::new(2, Relatives::new(None));
        let opened = listening.open(&addresses, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert_eq!(listening.of_shard(1, &addresses).unwrap().len(), 1);
        UnixStream::connect(&path).unwrap();
        listening.close();
        UnixStream::connect(&path).unwrap_err();
        assert!(path.exists());
        drop(listening);
        assert!(!path.exists());
    }
}
