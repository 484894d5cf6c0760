//! Listening sockets. They belong to the process, not to a configuration: an address that a new
//! configuration still names keeps its sockets, because closing one resets what waits in its queue.
//!
//! Every shard has a socket of its own for an IP address (`SO_REUSEPORT`), so that the kernel deals
//! out connections without a lock between shards. That option would let a second instance, started
//! by mistake, take part in silence; so an address is first tried without it.

use std::fs::{self, Permissions};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::failure::Failure;
use super::report::Report;
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
    /// One for each shard, or one for all of them.
    sockets: Vec<Socket>,
    file: Option<SocketFile>,
}

/// The file of a unix socket. Removed when dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

/// Addresses that are open for a configuration that is not in force yet. Dropping it closes them.
#[must_use]
#[derive(Debug)]
pub struct Opened(Vec<Bound>);

impl Listening {
    pub fn new(shards: usize) -> Self {
        Listening { shards, open: Vec::new(), leaving: Vec::new(), files: Vec::new() }
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
        let mut opened = Vec::new();
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
            let is_shared = self.all().chain(&*opened).any(|bound| overlap(&bound.listen, listen));
            match if is_shared { Ok(()) } else { try_out(listen) } {
                Ok(()) => free.push(listen),
                Err(failure) => report_busy(failure, report).map(|()| busy.push(listen))?,
            }
        }
        for listen in free {
            match Bound::new(listen, self.shards, report) {
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
            let socket = bound.and_then(|b| b.sockets.get(shard).or(b.sockets.first()));
            let Some(socket) = socket else { continue };
            let copy = socket.try_clone().map_err(Failure::socket("dup", &listen.name))?;
            listening.push(channel::Listening {
                name: listen.name.clone(),
                address: AddressId(index as u32),
                socket: copy.into(),
            });
        }
        Ok(listening)
    }

    /// Closes what the configuration in force does not name, and removes its socket files. To be
    /// called when no shard accepts from it any more.
    pub fn close_leaving(&mut self) {
        self.leaving.clear();
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
        *self = Listening::new(self.shards);
    }

    fn all(&self) -> impl Iterator<Item = &Bound> {
        self.open.iter().chain(&self.leaving)
    }
}

/// Tries every address for `-t`, and leaves nothing behind. One that is in use is no error: most
/// likely it is the running instance that uses it.
pub fn try_out_all(addresses: &[Address], report: &Report) -> Result<(), Failure> {
    for Address { listen, .. } in addresses {
        let tried = match listen.address {
            ListenAddress::Inet(_) => try_out(listen),
            ListenAddress::Unix(_) => Bound::new(listen, 1, report).map(drop),
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
        ListenAddress::Inet(address) => bind(listen, &(*address).into(), Sharing::No).map(drop),
        ListenAddress::Unix(_) => Ok(()),
    }
}

/// Whether sockets that allow it too may be bound to the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    No,
    /// `SO_REUSEPORT`
    BetweenShards,
}

fn bind(listen: &Listen, address: &SockAddr, sharing: Sharing) -> Result<Socket, Failure> {
    let failed = |call| Failure::socket(call, &listen.name);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(address.domain(), kind, None).map_err(failed("socket"))?;
    if !address.is_unix() {
        socket.set_reuse_address(true).map_err(failed("setsockopt(SO_REUSEADDR)"))?;
    }
    if sharing == Sharing::BetweenShards {
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
    fn new(listen: &Listen, shards: usize, report: &Report) -> Result<Self, Failure> {
        let (sockets, file) = match &listen.address {
            ListenAddress::Inet(address) => {
                let address = SockAddr::from(*address);
                let sockets = (0..shards).map(|_| bind(listen, &address, Sharing::BetweenShards));
                (sockets.collect::<Result<_, _>>()?, None)
            }
            ListenAddress::Unix(path) => {
                let address =
                    SockAddr::unix(path).map_err(Failure::socket("bind", &listen.name))?;
                let socket = bind(listen, &address, Sharing::No)?;
                let file = SocketFile(path.clone());
                fs::set_permissions(path, Permissions::from_mode(0o666))
                    .map_err(Failure::path("chmod", path))?;
                (vec![socket], Some(file))
            }
        };
        for socket in &sockets {
            set_options(socket, listen, report);
        }
        let bound = Bound { listen: listen.clone(), sockets, file };
        bound.listen()?;
        Ok(bound)
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
        // Removed by somebody already: nobody to tell.
        let _ = fs::remove_file(&self.0);
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
        let mut listening = Listening::new(2);
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
    fn what_is_leaving_can_be_taken_back() {
        let report = report();
        let addresses = [inet(&free().to_string())];
        let mut listening = Listening::new(1);
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
        let mut listening = Listening::new(1);
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
        let mut listening = Listening::new(2);
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
