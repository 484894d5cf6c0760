//! Names to addresses while running (nginx's `resolver`): a shard asks name servers itself, and
//! waits for them like for any other peer.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use hickory_proto::rr::Name;

use slab::Slab;

use crate::error_log::Level;
use crate::io::runtime;
use crate::io::select::{Either, Signal, both, either};
use crate::io::timer::{self, Expired, Timer, Wait};

mod ask;
pub mod cache;
pub mod message;

use ask::Asking;
use cache::Cache;
use message::{ALIASES_MAX, Kind, Records, Service};

/// Answers that a shard keeps for one `resolver`.
const CACHED_MAX: usize = 4096;
/// Names that a shard asks for at the same time: each takes two sockets. One that is not answered
/// makes room when nobody waits for it any more: at the latest after their `resolver_timeout`.
const PENDING_MAX: usize = 256;

/// `resolver`: who is asked, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servers {
    /// Never empty; asked in rotation.
    pub addresses: Vec<SocketAddr>,
    /// How long answers are used, in place of what they say.
    pub valid: Option<Duration>,
    /// Which addresses are asked for: never neither.
    pub ipv4: bool,
    pub ipv6: bool,
}

/// Why there is no answer. `Display` is what nginx puts in parentheses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The server's word (RFC 1035 section 4.1.1).
    FormatError,
    ServerFailure,
    /// There is no such name, or none with an address.
    NotFound,
    Unimplemented,
    Refused,
    /// A code that nginx has no word for either.
    Other(u8),
    /// `resolver_timeout`
    TimedOut,
    /// Too many names are being asked for.
    Busy,
    /// The shard is ending.
    Interrupted,
}

impl Failure {
    fn from_code(code: u8) -> Self {
        match code {
            1 => Failure::FormatError,
            2 => Failure::ServerFailure,
            3 => Failure::NotFound,
            4 => Failure::Unimplemented,
            5 => Failure::Refused,
            code => Failure::Other(code),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::FormatError => f.write_str("1: Format error"),
            Failure::ServerFailure => f.write_str("2: Server failure"),
            Failure::NotFound => f.write_str("3: Host not found"),
            Failure::Unimplemented => f.write_str("4: Unimplemented"),
            Failure::Refused => f.write_str("5: Operation refused"),
            Failure::Other(code) => write!(f, "{code}: Unknown error"),
            Failure::TimedOut => f.write_str("110: Operation timed out"),
            Failure::Busy => f.write_str("11: Resource temporarily unavailable"),
            Failure::Interrupted => f.write_str("4: Interrupted system call"),
        }
    }
}

/// What was found for a name.
#[derive(Debug)]
pub struct Found<T> {
    /// Never empty.
    pub values: Rc<[T]>,
    /// Until when it may be used.
    pub until_ms: u64,
}

impl<T> Clone for Found<T> {
    fn clone(&self) -> Self {
        Found { values: Rc::clone(&self.values), until_ms: self.until_ms }
    }
}

/// Where a service is, one entry an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub priority: u16,
    pub weight: u16,
}

/// One `resolver` on one shard, for one configuration.
pub struct Resolver {
    addresses: Rc<Names<IpAddr>>,
    services: Rc<Names<Service>>,
    asking: Asking,
    log: Rc<Logging>,
    valid: Option<Duration>,
    ipv4: bool,
    ipv6: bool,
}

/// Where what goes wrong is told.
type Logging = dyn Fn(Level, fmt::Arguments<'_>);

/// The names that were, or are being, asked for records of one kind.
struct Names<T> {
    cache: RefCell<Cache<Name, Found<T>>>,
    pending: RefCell<HashMap<Name, Rc<Pending<T>>>>,
    /// It has been told that there is no room for another.
    told_full: Cell<bool>,
}

/// A question under way, and who waits for its answer.
struct Pending<T> {
    answer: RefCell<Option<Result<Found<T>, Failure>>>,
    wakers: RefCell<Slab<Waker>>,
    waiting: Cell<usize>,
    /// Nobody waits any more.
    abandoned: Signal,
}

impl Resolver {
    /// `log` takes what goes wrong with a server, with nginx's words for it.
    pub fn new(servers: &Servers, log: impl Fn(Level, fmt::Arguments<'_>) + 'static) -> Self {
        let log: Rc<Logging> = Rc::new(log);
        Resolver {
            addresses: Names::new(),
            services: Names::new(),
            asking: Asking::new(&servers.addresses, Rc::clone(&log)),
            log,
            valid: servers.valid,
            ipv4: servers.ipv4,
            ipv6: servers.ipv6,
        }
    }

    /// The addresses of a name, IPv4 first. A `limit` of zero: for as long as it takes.
    pub async fn addresses(
        self: &Rc<Self>,
        name: &str,
        limit: Duration,
    ) -> Result<Found<IpAddr>, Failure> {
        let name = message::name(name).ok_or(Failure::NotFound)?;
        self.addresses_of(&name, limit).await
    }

    async fn addresses_of(
        self: &Rc<Self>,
        name: &Name,
        limit: Duration,
    ) -> Result<Found<IpAddr>, Failure> {
        let this = Rc::clone(self);
        let asked = name.clone();
        let ask = || Box::pin(async move { this.ask_addresses(&asked).await });
        self.addresses.find(name, limit, &self.log, ask).await
    }

    /// Where the servers of a service are: its SRV records, with the addresses of their targets. A
    /// target that has none is left out, unless that is so of all.
    pub async fn endpoints(
        self: &Rc<Self>,
        name: &str,
        limit: Duration,
    ) -> Result<Found<Endpoint>, Failure> {
        /// Records that are looked at.
        const RECORDS_MAX: usize = 256;
        let name = message::name(name).ok_or(Failure::NotFound)?;
        let this = Rc::clone(self);
        let asked = name.clone();
        let ask = || Box::pin(async move { this.ask_services(&asked).await });
        let services = self.services.find(&name, limit, &self.log, ask).await?;
        let mut until_ms = services.until_ms;
        let mut endpoints = Vec::new();
        for service in services.values.iter().take(RECORDS_MAX) {
            match self.addresses_of(&service.target, limit).await {
                Ok(found) => {
                    until_ms = until_ms.min(found.until_ms);
                    endpoints.extend(found.values.iter().map(|ip| Endpoint {
                        address: (*ip, service.port).into(),
                        priority: service.priority,
                        weight: service.weight,
                    }));
                }
                Err(Failure::NotFound) => {}
                // It would cost all of them: the others' time limits are not waited for.
                Err(other) => return Err(other),
            }
        }
        if endpoints.is_empty() {
            return Err(Failure::NotFound);
        }
        Ok(Found { values: endpoints.into(), until_ms })
    }

    /// Asks for both families at once. Where neither has addresses, and the name is an alias, for
    /// what it is an alias of.
    async fn ask_addresses(&self, name: &Name) -> Result<Found<IpAddr>, Failure> {
        let mut ttl = u32::MAX;
        let mut name = name.clone();
        for _ in 0..=ALIASES_MAX {
            let ask = async |kind, wanted| {
                if wanted { Some(self.asking.ask(&name, kind).await) } else { None }
            };
            let (four, six) = both(ask(Kind::A, self.ipv4), ask(Kind::Aaaa, self.ipv6)).await;
            let answers = || [&four, &six].into_iter().flatten();
            let of_alias = |records: &Records| Some((records.alias.clone()?, records.ttl?));
            let alias = answers().flatten().find_map(of_alias);
            match (merge(answers()), alias) {
                (Ok((addresses, life)), _) => return Ok(self.found(addresses, life.min(ttl))),
                (Err(_), Some((alias, life))) => {
                    ttl = ttl.min(life);
                    name = alias;
                }
                (Err(failure), None) => return Err(failure),
            }
        }
        Err(Failure::NotFound)
    }

    async fn ask_services(&self, name: &Name) -> Result<Found<Service>, Failure> {
        let records = self.chase(name, Kind::Srv).await?;
        if records.services.is_empty() {
            return Err(Failure::NotFound);
        }
        Ok(self.found(records.services, records.ttl.unwrap_or(0)))
    }

    /// Asks for a name, and for what it is an alias of.
    async fn chase(&self, name: &Name, kind: Kind) -> Result<Records, Failure> {
        let mut ttl = u32::MAX;
        let mut name = name.clone();
        for _ in 0..=ALIASES_MAX {
            let mut records = self.asking.ask(&name, kind).await?;
            ttl = ttl.min(records.ttl.unwrap_or(u32::MAX));
            let Some(alias) = records.alias.take() else {
                records.ttl = records.ttl.map(|_| ttl);
                return Ok(records);
            };
            name = alias;
        }
        Err(Failure::NotFound)
    }

    fn found<T>(&self, values: Vec<T>, ttl: u32) -> Found<T> {
        let life = self.valid.unwrap_or(Duration::from_secs(u64::from(ttl)));
        let until_ms = timer::now_ms().saturating_add(life.as_millis() as u64);
        Found { values: values.into(), until_ms }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// The addresses of both families, and how many seconds they live. One family that could not be
/// asked for does not matter where the other has addresses; of two failures one that tells more than
/// that there is nothing is kept.
fn merge<'a>(
    answers: impl Iterator<Item = &'a Result<Records, Failure>>,
) -> Result<(Vec<IpAddr>, u32), Failure> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut ttl = u32::MAX;
    let mut failure = Failure::NotFound;
    for answer in answers {
        match answer {
            Ok(records) if !records.addresses.is_empty() => {
                ttl = ttl.min(records.ttl.unwrap_or(0));
                for address in &records.addresses {
                    if !addresses.contains(address) {
                        addresses.push(*address);
                    }
                }
            }
            Ok(_) | Err(Failure::NotFound) => {}
            Err(other) => failure = *other,
        }
    }
    if addresses.is_empty() { Err(failure) } else { Ok((addresses, ttl)) }
}

impl<T: 'static> Names<T> {
    fn new() -> Rc<Self> {
        Rc::new(Names {
            cache: RefCell::new(Cache::new(CACHED_MAX)),
            pending: RefCell::default(),
            told_full: Cell::new(false),
        })
    }

    /// What is kept for a name, or what `ask` finds: one question for all who want to know.
    async fn find<A>(
        self: &Rc<Self>,
        name: &Name,
        limit: Duration,
        log: &Rc<Logging>,
        ask: impl FnOnce() -> Pin<Box<A>>,
    ) -> Result<Found<T>, Failure>
    where
        A: Future<Output = Result<Found<T>, Failure>> + 'static,
    {
        if let Some(found) = self.cache.borrow().get(name, timer::now_ms()) {
            return Ok(found.clone());
        }
        let known = self.pending.borrow().get(name).cloned();
        let pending = match known {
            Some(pending) => pending,
            None if self.pending.borrow().len() >= PENDING_MAX => {
                // Whoever asks tells of every name; why none is asked for is told once.
                if !self.told_full.replace(true) {
                    let text = format_args!(
                        "{PENDING_MAX} names at a time are not enough while resolving {name}"
                    );
                    log(Level::Error, text);
                }
                return Err(Failure::Busy);
            }
            None => {
                self.told_full.set(false);
                self.begin(name, log, ask())
            }
        };
        let waiting = Waiting::new(self, name, pending);
        let limit = if limit.is_zero() { Duration::MAX } else { limit };
        match Timer::new().within(limit, Wait::Busy, waiting.answer()).await {
            Ok(answer) => answer,
            Err(Expired::Elapsed) => Err(Failure::TimedOut),
            Err(Expired::Interrupted) => Err(Failure::Interrupted),
        }
    }

    /// Starts the task that asks.
    fn begin(
        self: &Rc<Self>,
        name: &Name,
        log: &Rc<Logging>,
        ask: impl Future<Output = Result<Found<T>, Failure>> + 'static,
    ) -> Rc<Pending<T>> {
        let pending = Rc::new(Pending {
            answer: RefCell::default(),
            wakers: RefCell::default(),
            waiting: Cell::new(0),
            abandoned: Signal::default(),
        });
        self.pending.borrow_mut().insert(name.clone(), Rc::clone(&pending));
        let task = {
            let (this, name, pending) = (Rc::clone(self), name.clone(), Rc::clone(&pending));
            async move {
                if let Either::First(answer) = either(ask, pending.abandoned.wait()).await {
                    this.finish(&name, &pending, answer);
                }
            }
        };
        let (this, name, failed) = (Rc::clone(self), name.clone(), Rc::clone(&pending));
        let log = Rc::clone(log);
        runtime::spawn(task, move |text| {
            log(Level::Alert, format_args!("panic in a resolver: {text}"));
            this.finish(&name, &failed, Err(Failure::ServerFailure));
        });
        pending
    }

    fn finish(&self, name: &Name, pending: &Rc<Pending<T>>, answer: Result<Found<T>, Failure>) {
        self.forget(name, pending);
        if let Ok(found) = &answer {
            let (found, now_ms, until_ms) = (found.clone(), timer::now_ms(), found.until_ms);
            self.cache.borrow_mut().put(name.clone(), found, now_ms, until_ms);
        }
        *pending.answer.borrow_mut() = Some(answer);
        for (_, waker) in pending.wakers.take() {
            waker.wake();
        }
    }

    fn forget(&self, name: &Name, pending: &Rc<Pending<T>>) {
        let mut all = self.pending.borrow_mut();
        if all.get(name).is_some_and(|known| Rc::ptr_eq(known, pending)) {
            all.remove(name);
        }
    }
}

/// One who waits for an answer, counted until dropped.
struct Waiting<'a, T: 'static> {
    names: &'a Names<T>,
    name: &'a Name,
    pending: Rc<Pending<T>>,
    /// Of its waker.
    key: Cell<Option<usize>>,
}

impl<'a, T: 'static> Waiting<'a, T> {
    #[expect(clippy::arithmetic_side_effects, reason = "counts waiters in memory")]
    fn new(names: &'a Names<T>, name: &'a Name, pending: Rc<Pending<T>>) -> Self {
        pending.waiting.set(pending.waiting.get() + 1);
        Waiting { names, name, pending, key: Cell::new(None) }
    }

    async fn answer(&self) -> Result<Found<T>, Failure> {
        std::future::poll_fn(|cx| {
            if let Some(answer) = &*self.pending.answer.borrow() {
                return Poll::Ready(answer.clone());
            }
            let mut wakers = self.pending.wakers.borrow_mut();
            match self.key.get().and_then(|key| wakers.get_mut(key)) {
                Some(waker) => waker.clone_from(cx.waker()),
                None => self.key.set(Some(wakers.insert(cx.waker().clone()))),
            }
            Poll::Pending
        })
        .await
    }
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        if let Some(key) = self.key.get() {
            let _ = self.pending.wakers.borrow_mut().try_remove(key);
        }
        #[expect(clippy::arithmetic_side_effects, reason = "this one has been counted")]
        let left = self.pending.waiting.get() - 1;
        self.pending.waiting.set(left);
        if left == 0 {
            // Whoever asks next begins anew, and does not join what is about to end.
            self.names.forget(self.name, &self.pending);
            self.pending.abandoned.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(addresses: &[&str], ttl: u32) -> Records {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Records { addresses, ttl: Some(ttl), ..Records::default() }
    }

    #[test]
    fn one_family_is_enough() {
        let ok = |addresses, ttl| Ok(records(addresses, ttl));
        let merged = |answers: Vec<Result<Records, Failure>>| {
            merge(answers.iter())
                .map(|(ips, ttl)| (ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ttl))
        };
        let (four, six) = (ok(&["10.0.0.1"], 9), ok(&["::1", "::1"], 5));
        let both: Vec<String> = vec!["10.0.0.1".into(), "::1".into()];
        let four_alone = || Ok((vec!["10.0.0.1".to_owned()], 9));
        assert_eq!(merged(vec![four, six]), Ok((both, 5)));
        for other in [ok(&[], 1), Err(Failure::NotFound), Err(Failure::ServerFailure)] {
            assert_eq!(merged(vec![ok(&["10.0.0.1"], 9), other]), four_alone());
        }
        assert_eq!(merged(vec![ok(&[], 1), ok(&[], 1)]), Err(Failure::NotFound));
        let failed = vec![Err(Failure::Refused), Err(Failure::NotFound)];
        assert_eq!(merged(failed), Err(Failure::Refused));
    }
}
