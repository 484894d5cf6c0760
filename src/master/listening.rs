//! Listening sockets. They belong to the process, not to a configuration: an address that a new
//! configuration still names keeps its sockets, because closing one resets what waits in its queue.
//!
//! Every shard has a socket of its own for an IP address (`SO_REUSEPORT`), so that the kernel deals
//! out connections without a lock between shards. That option would let a second instance, started
//! by mistake, take part in silence; so an address is first tried without it.
//!
//! A socket that is not needed any more, because its address or its shard is not, *retires*: it gets no
//! new connections, while shards go on to accept those that are in its queue or in a handshake; some
//! time later it is closed.
//!
//! Sockets may also be inherited, from an old binary or a service manager. Each has a queue of its own
//! that somebody has to accept from: when there are more sockets than shards, a shard has several of
//! an address, and when there are fewer and no more can be bound, shards share them. As long as another
//! process has a socket too, it does not retire: nobody is kept from connecting to that process.

mod bound;

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bound::{Bound, Origin, SocketFile, try_out};

use super::failure::Failure;
use super::report::Report;
use super::upgrade::Relatives;
use super::upgrade::inherited::InheritedSocket;
use crate::channel;
use crate::error_log::Level;
use crate::http::server::{Address, AddressId, Listen, ListenAddress};

/// How often a busy address is tried, and the pause after each failure: another instance may be on
/// its way out.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// For how long what is on its way to a socket that retires is accepted: a client whose last step of
/// the handshake is lost has had one more try, and one who comes too late and tries again after three
/// seconds is refused.
pub const RETIREMENT: Duration = Duration::from_secs(2);
/// The same, where somebody else is to get the connections that the retired socket ignores (`*:80`
/// for `127.0.0.1:80`).
const SHORT_RETIREMENT: Duration = Duration::from_millis(300);

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

/// Addresses that are open for a configuration that is not in force yet. Dropping it closes them.
#[must_use]
#[derive(Debug)]
pub struct Opened {
    /// New addresses, and more sockets for known ones.
    bound: Vec<Bound>,
    /// How many shards they are for.
    shards: usize,
}

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
                bound.inherited = bound.sockets.len();
            } else {
                let origin = if is_activated { Origin::Manager } else { Origin::Predecessor };
                self.leaving.push(Bound::inherited(address, socket, origin, &self.relatives));
            }
        }
    }

    /// What a new binary gets: every socket that is listened on, and whether a service manager has
    /// opened it.
    pub fn inheritance(&self) -> Vec<(BorrowedFd<'_>, bool)> {
        let mut inheritance = Vec::new();
        for Bound { sockets, origin, .. } in &self.open {
            let is_activated = *origin == Origin::Manager;
            inheritance.extend(sockets.iter().map(|socket| (socket.as_fd(), is_activated)));
        }
        inheritance
    }

    /// Whether other processes have some of the sockets too: then they are let go of, never shut
    /// down.
    pub fn is_shared(&self) -> bool {
        self.all().any(Bound::is_shared)
    }

    /// Lets new connections go to all sockets: a process that had more of them is gone.
    pub fn take_all(&self, report: &Report) {
        self.open.iter().for_each(|bound| bound.choose(report));
    }

    /// How many shards the sockets are for.
    pub fn shards(&self) -> usize {
        self.shards
    }

    /// Opens what `addresses` names, for so many shards, and the process does not have yet. Changes
    /// nothing that is in use; [`Listening::adopt`] does.
    pub fn open(
        &self,
        addresses: &[Address],
        shards: usize,
        report: &Report,
    ) -> Result<Opened, Failure> {
        let mut waiting: Vec<&Listen> = addresses
            .iter()
            .map(|address| &address.listen)
            .filter(|listen| self.all().all(|bound| !bound.is_of(listen)))
            .collect();
        let mut opened = Opened { bound: Vec::new(), shards };
        self.open_for_every_shard(addresses, &mut opened, report)?;
        for _ in 0..TRIES {
            waiting = self.open_what_is_free(&waiting, &mut opened, report)?;
            if waiting.is_empty() {
                return Ok(opened);
            }
            report.notice(format_args!("try again to bind() after {}ms", PAUSE.as_millis()));
            thread::sleep(PAUSE);
        }
        Err(Failure::StillBusy)
    }

    /// Binds more sockets to known addresses that have fewer than there are shards. Where that is not
    /// allowed, shards share: who opened the first need not have set `SO_REUSEPORT`.
    fn open_for_every_shard(
        &self,
        addresses: &[Address],
        opened: &mut Opened,
        report: &Report,
    ) -> Result<(), Failure> {
        for Address { listen, .. } in addresses {
            let Some(bound) = self.all().find(|bound| bound.is_of(listen)) else { continue };
            let there = bound.sockets.len().saturating_add(bound.retired.len());
            let missing = opened.shards.saturating_sub(there);
            let first = bound.sockets.first();
            let may_have_more = first.is_some_and(|first| first.reuse_port().unwrap_or(false));
            if missing == 0 || !may_have_more || matches!(listen.address, ListenAddress::Unix(_)) {
                continue;
            }
            match Bound::beside(listen, missing, first, &self.relatives, report) {
                Ok(more) => opened.bound.push(more),
                Err(failure) if failure.is_busy() => {
                    report.notice(format_args!("{failure}, shards share sockets"));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// One try; returns the addresses that are busy. All are tried out before any is bound, because
    /// `*:80` and `127.0.0.1:80` are in each other's way only without `SO_REUSEPORT`.
    fn open_what_is_free<'a>(
        &self,
        waiting: &[&'a Listen],
        opened: &mut Opened,
        report: &Report,
    ) -> Result<Vec<&'a Listen>, Failure> {
        let mut busy = Vec::new();
        let mut free = Vec::new();
        for &listen in waiting {
            let is_shared =
                self.all().chain(&opened.bound).any(|bound| overlap(&bound.listen, listen));
            match if is_shared { Ok(()) } else { try_out(listen) } {
                Ok(()) => free.push(listen),
                Err(failure) => report_busy(failure, report).map(|()| busy.push(listen))?,
            }
        }
        for listen in free {
            let known = self.all().find(|bound| overlap(&bound.listen, listen));
            let beside = known.and_then(|bound| bound.sockets.first());
            match Bound::beside(listen, opened.shards, beside, &self.relatives, report) {
                Ok(bound) => opened.bound.push(bound),
                Err(failure) => report_busy(failure, report).map(|()| busy.push(listen))?,
            }
        }
        Ok(busy)
    }

    /// Makes `addresses` what the process listens on, `opened` being the new ones among them. What
    /// is no longer named stays open until [`Listening::close_leaving`], and can be taken back.
    pub fn adopt(&mut self, opened: Opened, addresses: &[Address], report: &Report) {
        self.shards = opened.shards;
        let mut known: Vec<Bound> = self.open.drain(..).chain(self.leaving.drain(..)).collect();
        for bound in &mut known {
            bound.take_back(opened.shards);
        }
        known.extend(opened.bound);
        for mut bound in known {
            let is_same = |other: &&mut Bound| other.is_of(&bound.listen);
            if let Some(other) = self.open.iter_mut().find(is_same) {
                other.sockets.append(&mut bound.sockets);
                continue;
            }
            match addresses.iter().find(|address| bound.is_of(&address.listen)) {
                Some(address) => {
                    bound.change(&address.listen, report);
                    self.open.push(bound);
                }
                None => self.leaving.push(bound),
            }
        }
        for bound in &mut self.open {
            bound.retire_down_to(opened.shards, report);
        }
    }

    /// Lets nobody connect any more to what is to be closed. Tells for how long shards are to accept
    /// from it; `None`: nothing is to be closed.
    pub fn retire_leaving(&mut self, report: &Report) -> Option<Duration> {
        self.leaving.iter_mut().for_each(|bound| bound.ignore_new(report));
        let is_in_the_way = |leaving: &Bound| {
            let is_wide = |open: &Bound| match open.listen.address {
                ListenAddress::Inet(address) => address.ip().is_unspecified(),
                ListenAddress::Unix(_) => false,
            };
            self.open.iter().any(|open| is_wide(open) && overlap(&open.listen, &leaving.listen))
        };
        if self.leaving.iter().any(is_in_the_way) {
            Some(SHORT_RETIREMENT)
        } else if self.leaving.is_empty() && self.open.iter().all(|b| b.retired.is_empty()) {
            None
        } else {
            Some(RETIREMENT)
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
            let bound = self.open.iter().find(|bound| bound.is_of(listen));
            for socket in bound.iter().flat_map(|bound| bound.sockets_of(shard, self.shards)) {
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

    /// Closes what has retired, and removes socket files that nobody needs. Shards still have copies,
    /// until they have taken what is in the queues.
    pub fn close_leaving(&mut self) {
        for bound in self.leaving.drain(..) {
            // Those of an old binary's process, which may still listen there, are removed at the end.
            let file = bound.file.filter(|file| file.origin == Origin::Predecessor);
            self.files.extend(file);
        }
        // The kernel goes on to choose as it does until the next reload: by then they are closed.
        for bound in &mut self.open {
            bound.retired.clear();
        }
    }

    /// Closes every socket at once, so that clients are refused when the shards have let go of
    /// theirs. Socket files stay until the value is dropped.
    pub fn close(&mut self, report: &Report) {
        for mut bound in self.open.drain(..).chain(self.leaving.drain(..)) {
            bound.leave_to_predecessor(report);
            self.files.extend(bound.file);
        }
    }

    /// Ends listening for every copy of the sockets, those of shards that have ended without closing
    /// theirs included, and removes socket files.
    pub fn shut_down(&mut self) {
        for socket in self.all().flat_map(|bound| bound.sockets.iter().chain(&bound.retired)) {
            // It listened, so there is something to end.
            let _ = socket.shutdown(Shutdown::Read);
        }
        *self = Listening::new(self.shards, Arc::clone(&self.relatives));
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

impl Opened {
    /// Nothing new, for so many shards.
    pub fn none(shards: usize) -> Self {
        Opened { bound: Vec::new(), shards }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;

    use socket2::Socket;

    use super::*;
    use crate::error_log::{Destination, Files};
    use crate::http::server::{ServerId, ServerNames, SoKeepalive};

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
        let opened = listening.open(&addresses, 2, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        for shard in [0, 1] {
            let copies = listening.of_shard(shard, &addresses).unwrap();
            assert_eq!((copies.len(), copies[0].address), (1, AddressId(0)));
        }
        let busy = try_out(&addresses[0].listen).unwrap_err();
        assert!(busy.is_busy(), "{busy}");
        assert!(try_out_all(&addresses, &report).is_ok());

        // Loaded again: nothing is opened. Then without it: closed when the shards have let go.
        let again = listening.open(&addresses, 2, &report).unwrap();
        assert!(again.bound.is_empty());
        listening.adopt(again, &[], &report);
        TcpStream::connect(taken).unwrap();
        listening.close_leaving();
        TcpStream::connect(taken).unwrap_err();
    }

    #[test]
    fn every_socket_is_some_shards_and_every_shard_has_one() {
        let of = |count: u16, shard, shards| -> Vec<u16> {
            let mut listening = Listening::new(shards, Relatives::new(None));
            let socket = || OwnedFd::from(TcpListener::bind(("127.0.0.1", 0)).unwrap()).into();
            let inherit = |_| InheritedSocket {
                address: ListenAddress::Inet("127.0.0.1:80".parse().unwrap()),
                socket: socket(),
                is_activated: true,
            };
            listening.inherit((0..count).map(inherit).collect());
            let Some(bound) = listening.leaving.first() else { return Vec::new() };
            let at = |socket: &Socket| bound.sockets.iter().position(|s| std::ptr::eq(s, socket));
            bound.sockets_of(shard, shards).map(|socket| at(socket).unwrap() as u16).collect()
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
        let opened = old.open(&both, 2, &report).unwrap();
        old.adopt(opened, &both, &report);
        assert_eq!(old.inheritance().len(), 4);

        for (shards, of_each) in [(1, vec![2]), (2, vec![1, 1]), (3, vec![1, 1, 1])] {
            let relatives = Relatives::new(rustix::process::getppid());
            let mut new = Listening::new(shards, relatives);
            new.inherit(handed_on(&old, false));
            let opened = new.open(&both[..1], shards, &report).unwrap();
            assert_eq!(opened.bound.len(), usize::from(shards > 2));
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
        let address = addresses[0].listen.address.clone();
        let socket = OwnedFd::from(alone).into();
        listening.inherit(vec![InheritedSocket { address, socket, is_activated: true }]);
        let opened = listening.open(&addresses, 2, &report).unwrap();
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
        let opened = old.open(&addresses, 1, &report).unwrap();
        old.adopt(opened, &addresses, &report);

        let start = |predecessor, named: &[Address]| {
            let mut new = Listening::new(1, Relatives::new(predecessor));
            new.inherit(handed_on(&old, false));
            let opened = new.open(named, 1, &report).unwrap();
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
        let opened = listening.open(&addresses, 1, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        listening.adopt(Opened::none(1), &[], &report);
        let opened = listening.open(&addresses, 1, &report).unwrap();
        assert!(opened.bound.is_empty());
        listening.adopt(opened, &addresses, &report);
        listening.close_leaving();
        assert_eq!(listening.of_shard(0, &addresses).unwrap().len(), 1);
    }

    impl Listening {
        fn retired_count(&self) -> usize {
            self.open.iter().map(|bound| bound.retired.len()).sum()
        }
    }

    fn accepted(listening: &Listening, shard: usize, addresses: &[Address]) -> usize {
        let copies = listening.of_shard(shard, addresses).unwrap();
        let sockets = copies.into_iter().map(|copy| TcpListener::from(copy.socket));
        sockets.map(|socket| std::iter::from_fn(|| socket.accept().ok()).count()).sum()
    }

    #[test]
    fn shards_come_and_go_and_no_connection_is_lost() {
        let (report, taken) = (report(), free());
        let addresses = [inet(&taken.to_string())];
        let mut listening = Listening::new(1, Relatives::new(None));
        let take = |listening: &mut Listening, shards| {
            let opened = listening.open(&addresses, shards, &report).unwrap();
            listening.adopt(opened, &addresses, &report);
            listening.retire_leaving(&report)
        };
        let connect =
            || -> Vec<_> { (0..16).map(|_| TcpStream::connect(taken).unwrap()).collect() };
        assert_eq!(take(&mut listening, 1), None);
        assert_eq!(take(&mut listening, 4), None);
        let first = connect();
        // Two are not needed any more: what they have is theirs, and they get nothing more.
        assert_eq!(take(&mut listening, 2), Some(RETIREMENT));
        let at_first: Vec<_> = (0..4).map(|k| accepted(&listening, k, &addresses)).collect();
        assert_eq!(at_first.iter().sum::<usize>(), first.len());
        let second = connect();
        let retired = (2..4).map(|k| accepted(&listening, k, &addresses)).sum::<usize>();
        assert_eq!(retired, 0);
        // One of them is needed again.
        let opened = listening.open(&addresses, 3, &report).unwrap();
        assert!(opened.bound.is_empty());
        listening.adopt(opened, &addresses, &report);
        assert_eq!(listening.open[0].sockets.len(), 3);
        assert_eq!(listening.retired_count(), 1);
        listening.close_leaving();
        assert_eq!(listening.retired_count(), 0);
        let third = connect();
        let all = (0..3).map(|k| accepted(&listening, k, &addresses)).sum::<usize>();
        assert_eq!(all, second.len() + third.len());
    }

    #[test]
    fn an_address_that_retires_keeps_its_queue_and_can_be_taken_back() {
        let (report, taken) = (report(), free());
        let addresses = [inet(&taken.to_string())];
        let mut listening = Listening::new(1, Relatives::new(None));
        let opened = listening.open(&addresses, 1, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        let _waiting = TcpStream::connect(taken).unwrap();
        listening.adopt(Opened::none(1), &[], &report);
        assert_eq!(listening.retire_leaving(&report), Some(RETIREMENT));
        let short = Duration::from_millis(100);
        TcpStream::connect_timeout(&taken, short).unwrap_err();
        listening.adopt(Opened::none(1), &addresses, &report);
        assert_eq!(listening.retire_leaving(&report), None);
        let _new = TcpStream::connect(taken).unwrap();
        assert!(accepted(&listening, 0, &addresses) >= 2);

        // Where another address takes its place, it is soon out of the way.
        let wide = [inet(&format!("0.0.0.0:{}", taken.port()))];
        let opened = listening.open(&wide, 1, &report).unwrap();
        listening.adopt(opened, &wide, &report);
        assert_eq!(listening.retire_leaving(&report), Some(SHORT_RETIREMENT));
        listening.close_leaving();
        let _wide = TcpStream::connect(taken).unwrap();
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
        let opened = listening.open(&addresses[..1], 1, &report).unwrap();
        listening.adopt(opened, &addresses[..1], &report);
        let opened = listening.open(&addresses, 1, &report).unwrap();
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
        let opened = listening.open(&addresses, 2, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert_eq!(listening.of_shard(1, &addresses).unwrap().len(), 1);
        UnixStream::connect(&path).unwrap();
        // Not named for a moment: nobody comes in, and then it is opened anew.
        listening.adopt(Opened::none(2), &[], &report);
        assert_eq!(listening.retire_leaving(&report), Some(RETIREMENT));
        UnixStream::connect(&path).unwrap_err();
        let opened = listening.open(&addresses, 2, &report).unwrap();
        listening.adopt(opened, &addresses, &report);
        listening.close_leaving();
        UnixStream::connect(&path).unwrap();
        listening.close(&report);
        UnixStream::connect(&path).unwrap_err();
        assert!(path.exists());
        drop(listening);
        assert!(!path.exists());
    }
}
