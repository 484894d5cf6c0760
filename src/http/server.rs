//! The frozen http configuration: listening addresses, servers and how one is chosen by name.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::computed::Computed;
use super::location::{Location, LocationTree};
use super::modules::access_log::AccessFile;
use super::modules::health_check::Check;
use super::modules::sticky::{Sessions, Sticky};
use super::modules::upstream::Upstream;
use super::variable::{Regex, VariableSlot};
use crate::config::address::{self, Form, Host};
use crate::config::diagnostic::{Fault, Outcome, Place, fault};
use crate::config::value::{self, Args};
use crate::error_log::Level;
use crate::modules::Build;
use crate::resolver;

/// Indexes into the tables of [`Http`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServerId(pub u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocationId(pub u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressId(pub u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResolverId(pub u32);

/// The `http` block, checked and frozen. Shared read-only by every shard.
#[derive(Debug, Default)]
pub struct Http {
    pub addresses: Vec<Address>,
    pub servers: Vec<Server>,
    /// Every location, `if` block and server level of all servers.
    pub locations: Vec<Location>,
    pub upstreams: Vec<Upstream>,
    /// Every `resolver`; settings name them by index.
    pub resolvers: Vec<resolver::Servers>,
    /// Access logs without variables in their paths; settings name them by index.
    pub log_files: Vec<AccessFile>,
    /// What access logs are sent to; settings name them by index.
    pub log_servers: Vec<Arc<crate::syslog::Server>>,
    /// How many slots a request needs for variables made by `set` and by named captures.
    pub variable_slots: usize,
    /// Names of those slots, for warnings.
    pub variable_names: Vec<Box<str>>,
    /// Which of them `set` has made: these are empty, and there, before they are given a value.
    pub set_variables: Vec<bool>,
    /// By slot: how a variable is computed that nothing has set.
    pub computed: Vec<Option<Computed>>,
    pub health_checks: Vec<Check>,
}

impl Http {
    /// The zones of `sticky learn`; one that several upstreams use comes several times.
    fn sessions(&self) -> impl Iterator<Item = &Sessions> {
        self.upstreams.iter().filter_map(|upstream| match &upstream.sticky {
            Some(Sticky::Learn(learn)) => Some(&*learn.sessions),
            _ => None,
        })
    }

    /// Goes on with what the process knows of the upstreams that an earlier configuration had too.
    pub fn take_over(&self, old: &Http) {
        for upstream in &self.upstreams {
            if let Some(before) = old.upstreams.iter().find(|old| old.name == upstream.name) {
                upstream.zone.take_over(&before.zone);
                if !upstream.names.is_empty() {
                    upstream.zone.keep_found(&before.zone);
                }
            }
        }
        for sessions in self.sessions() {
            for before in old.sessions() {
                sessions.take_over(before);
            }
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the configuration that gave the id holds what it stands for"
    )]
    pub fn server(&self, id: ServerId) -> &Server {
        &self.servers[id.0 as usize]
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the configuration that gave the id holds what it stands for"
    )]
    pub fn location(&self, id: LocationId) -> &Location {
        &self.locations[id.0 as usize]
    }

    /// The location that answers when `id` was found: its `limit_except` block for the methods that
    /// are limited.
    pub fn for_method(&self, id: LocationId, method: &[u8]) -> LocationId {
        match &self.location(id).limit_except {
            Some(block) if block.limits(method) => block.location,
            _ => id,
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the configuration that gave the id holds what it stands for"
    )]
    pub fn upstream(&self, id: UpstreamId) -> &Upstream {
        &self.upstreams[id.0 as usize]
    }

    pub fn computed(&self, slot: VariableSlot) -> Option<&Computed> {
        self.computed.get(usize::from(slot.0))?.as_ref()
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the configuration that gave the id holds what it stands for"
    )]
    pub fn address(&self, id: AddressId) -> &Address {
        &self.addresses[id.0 as usize]
    }
}

/// One address:port (or unix path) that is listened on, and the servers behind it.
#[derive(Debug)]
pub struct Address {
    pub listen: Listen,
    /// Connections begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    pub default_server: ServerId,
    pub names: ServerNames,
}

/// Where and how to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub address: ListenAddress,
    /// As nginx prints it: `0.0.0.0:80`, `[::]:80`, `unix:/path`.
    pub name: Arc<str>,
    pub backlog: i32,
    pub ipv6only: bool,
    pub rcvbuf: Option<usize>,
    pub sndbuf: Option<usize>,
    pub so_keepalive: Option<SoKeepalive>,
    pub fastopen: Option<i32>,
    pub deferred: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    Inet(SocketAddr),
    Unix(PathBuf),
}

/// `so_keepalive=on|off|idle:interval:count`; a part that is empty or 0 keeps the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoKeepalive {
    pub on: bool,
    pub idle_s: Option<u64>,
    pub interval_s: Option<u64>,
    pub count: Option<u32>,
}

#[derive(Debug)]
pub struct Server {
    /// `$server_name`: the first name.
    pub name: Arc<str>,
    /// The server level itself, as a location without a name: its settings and rewrite steps.
    pub level: LocationId,
    pub locations: LocationTree,
    /// `@name` to location.
    pub named: HashMap<Arc<str>, LocationId>,
}

/// The names of the servers of one address.
///
/// Order of choice: exact name, longest leading wildcard, longest trailing wildcard, first matching
/// regex in configuration order, default server.
#[derive(Debug, Default)]
pub struct ServerNames {
    /// Lower case. `""` stands for a request without Host.
    pub exact: HashMap<Box<[u8]>, ServerId>,
    /// `*.example.org` under `.example.org`; `.example.org` is here and in `exact`.
    pub leading: HashMap<Box<[u8]>, ServerId>,
    /// `www.example.*` under `www.example.`.
    pub trailing: HashMap<Box<[u8]>, ServerId>,
    pub regex: Vec<(Arc<Regex>, ServerId)>,
}

impl ServerNames {
    /// Whether every request to this address goes to its default server.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty()
            && self.leading.is_empty()
            && self.trailing.is_empty()
            && self.regex.is_empty()
    }

    /// The server for a host that is lower case, without port and without trailing dot, apart from
    /// regexes: those are tried by the caller, in order, when this returns `None`.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "dots are searched for within the host"
    )]
    pub fn find(&self, host: &[u8]) -> Option<ServerId> {
        if let Some(id) = self.exact.get(host) {
            return Some(*id);
        }
        if !self.leading.is_empty() {
            // `.a.b` of `x.a.b`, then `.b`: the longest suffix first.
            for at in memchr::memchr_iter(b'.', host) {
                if at > 0
                    && let Some(id) = self.leading.get(&host[at..])
                {
                    return Some(*id);
                }
            }
        }
        if !self.trailing.is_empty() {
            // `a.b.` of `a.b.x`, then `a.`: the longest prefix first.
            for at in memchr::memrchr_iter(b'.', host) {
                if at + 1 < host.len()
                    && let Some(id) = self.trailing.get(&host[..=at])
                {
                    return Some(*id);
                }
            }
        }
        None
    }
}

/// A `server` block while it is read.
#[derive(Debug)]
pub struct ServerDraft {
    pub level: LocationId,
    /// Indexes into the table of addresses.
    listens: Vec<usize>,
    names: Vec<ServerName>,
}

#[derive(Debug, Clone)]
struct ServerName {
    /// As written, lower case; without the `~` of a regex.
    text: String,
    regex: Option<Arc<Regex>>,
}

/// An address with the servers that listen on it, while they are read.
#[derive(Debug)]
pub struct AddressDraft {
    listen: Listen,
    proxy_protocol: Protocols,
    /// Socket options were given: may happen once.
    has_options: bool,
    default_server: Option<ServerId>,
    servers: Vec<ServerId>,
}

/// What the servers of an address say of a protocol before HTTP: one that asks for it has it for all.
#[derive(Debug, Default)]
struct Protocols {
    /// One of its servers asks for it.
    is_asked: bool,
    /// What the servers so far agree on, since there are two.
    agreed: Option<bool>,
    /// They did not always.
    has_changed: bool,
}

impl Protocols {
    /// One more server, which asks for it or not, and may be the one that gives the socket's options.
    /// Whether it redefines what others have said: those who leave it out where one has it, before or
    /// after, mean the same, and so does the one that has all the options.
    fn join(&mut self, asks: bool, has_options: bool, others_have_options: bool) -> bool {
        let was_asked = self.is_asked;
        self.is_asked |= asks;
        let is_other = self.agreed.is_some_and(|agreed| agreed != asks);
        let (redefines, agreed) = match (was_asked, asks) {
            (false, true) => ((others_have_options && !has_options) || self.has_changed, was_asked),
            (true, false) => (has_options || is_other, asks),
            _ => ((has_options && self.has_changed) || is_other, asks),
        };
        self.has_changed |= was_asked != asks;
        self.agreed = Some(agreed);
        redefines
    }
}

/// How many connections wait to be accepted when `backlog` is not given.
const BACKLOG: i32 = 511;

impl ServerDraft {
    pub fn new(level: LocationId) -> Self {
        ServerDraft { level, listens: Vec::new(), names: Vec::new() }
    }

    /// `$server_name`.
    pub fn first_name(&self) -> Arc<str> {
        match self.names.first() {
            Some(ServerName { regex: Some(regex), .. }) => format!("~{}", regex.pattern).into(),
            Some(name) => name.text.strip_prefix('.').unwrap_or(&name.text).into(),
            None => "".into(),
        }
    }
}

/// `listen address [parameter ...];`
pub fn listen(b: &mut Build, args: Args<'_>) -> Outcome {
    let text = args.at(0);
    let failed = |error: address::AddressError| {
        Fault::new(format!("{error} in \"{text}\" of the \"listen\" directive"))
    };
    let address = address::Address::parse(text, Form::Listen).map_err(failed)?;
    let mut addresses = Vec::new();
    if let Host::Unix(path) = &address.host {
        addresses.push(ListenAddress::Unix(path.clone()));
    } else {
        for port in address.ports.clone().unwrap_or(80..=80) {
            let found = address.resolve(port).map_err(failed)?;
            addresses.extend(found.into_iter().map(ListenAddress::Inet));
        }
    }
    let parameters = ListenParameters::read(b, args)?;
    for address in addresses {
        add_listen(b, &parameters.of(address), &parameters, Some(args.place()))?;
    }
    Ok(())
}

/// Joins the server being read to an address.
fn add_listen(
    b: &mut Build,
    listen: &Listen,
    parameters: &ListenParameters,
    place: Option<&Place>,
) -> Outcome {
    let name = &listen.name;
    let known = b.http.addresses.iter().position(|known| known.listen.address == listen.address);
    let at = known.unwrap_or(b.http.addresses.len());
    let Some((id, server)) = b.http.server() else { return Ok(()) };
    if server.listens.contains(&at) {
        return fault!("a duplicate listen {name}");
    }
    server.listens.push(at);
    if known.is_none() {
        b.http.addresses.push(AddressDraft {
            listen: listen.clone(),
            proxy_protocol: Protocols {
                is_asked: parameters.proxy_protocol,
                ..Protocols::default()
            },
            has_options: false,
            default_server: None,
            servers: Vec::new(),
        });
    }
    let Some(address) = b.http.addresses.get_mut(at) else { return Ok(()) };
    let others_have_options = address.has_options;
    if parameters.has_options {
        if address.has_options {
            return fault!("duplicate listen options for {name}");
        }
        address.has_options = true;
        address.listen = listen.clone();
    }
    if parameters.is_default && address.default_server.replace(id).is_some() {
        return fault!("a duplicate default server for {name}");
    }
    address.servers.push(id);
    let ListenParameters { proxy_protocol, has_options, .. } = *parameters;
    if known.is_some()
        && address.proxy_protocol.join(proxy_protocol, has_options, others_have_options)
    {
        b.warn(place, format!("protocol options redefined for {name}"));
    }
    Ok(())
}

/// What may follow the address of a `listen`.
struct ListenParameters {
    is_default: bool,
    proxy_protocol: bool,
    /// Something that is set on the socket.
    has_options: bool,
    backlog: i32,
    ipv6only: bool,
    rcvbuf: Option<usize>,
    sndbuf: Option<usize>,
    so_keepalive: Option<SoKeepalive>,
    fastopen: Option<i32>,
    deferred: bool,
}

impl Default for ListenParameters {
    fn default() -> Self {
        ListenParameters {
            is_default: false,
            proxy_protocol: false,
            has_options: false,
            backlog: BACKLOG,
            ipv6only: true,
            rcvbuf: None,
            sndbuf: None,
            so_keepalive: None,
            fastopen: None,
            deferred: false,
        }
    }
}

impl ListenParameters {
    fn read(b: &mut Build, args: Args<'_>) -> Outcome<Self> {
        let mut parameters = ListenParameters::default();
        for parameter in args.from(1) {
            if parameter.starts_with("accept_filter=") {
                // FreeBSD's. So nginx says it, and goes on.
                let text = format!(
                    "accept filters \"{parameter}\" are not supported on this platform, ignored"
                );
                b.say(Level::Emerg, Some(args.place()), text);
                continue;
            }
            parameters.one(parameter)?;
        }
        Ok(parameters)
    }

    fn one(&mut self, parameter: &str) -> Outcome {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let has_value = name.len() < parameter.len();
        let invalid = || fault!("invalid {name} \"{parameter}\"");
        let count = || value::number(value).and_then(|n| i32::try_from(n).ok());
        match (name, has_value) {
            ("default_server" | "default", false) => {
                self.is_default = true;
                return Ok(());
            }
            ("proxy_protocol", false) => {
                self.proxy_protocol = true;
                return Ok(());
            }
            ("ssl" | "http2" | "quic", false) => {
                return fault!(
                    "the \"{name}\" parameter of the \"listen\" directive is not supported"
                );
            }
            // Every address is bound by itself, and by every shard.
            ("bind" | "reuseport" | "multipath", false) => {}
            ("deferred", false) => self.deferred = true,
            ("backlog", true) => match count().filter(|backlog| *backlog > 0) {
                Some(backlog) => self.backlog = backlog,
                None => return invalid(),
            },
            ("fastopen", true) => match count() {
                Some(queue) => self.fastopen = Some(queue),
                None => return invalid(),
            },
            ("rcvbuf", true) => match value::size(value) {
                Some(size) => self.rcvbuf = Some(size),
                None => return invalid(),
            },
            ("sndbuf", true) => match value::size(value) {
                Some(size) => self.sndbuf = Some(size),
                None => return invalid(),
            },
            ("ipv6only", true) => match value::flag(value) {
                Some(only) => self.ipv6only = only,
                None => return fault!("invalid parameter \"{parameter}\""),
            },
            ("so_keepalive", true) => match so_keepalive(value) {
                Some(keepalive) => self.so_keepalive = Some(keepalive),
                None => return fault!("invalid so_keepalive value: \"{value}\""),
            },
            _ => return fault!("invalid parameter \"{parameter}\""),
        }
        self.has_options = true;
        Ok(())
    }

    fn of(&self, address: ListenAddress) -> Listen {
        let name = match &address {
            ListenAddress::Inet(address) => address.to_string().into(),
            ListenAddress::Unix(path) => format!("unix:{}", path.display()).into(),
        };
        Listen {
            address,
            name,
            backlog: self.backlog,
            ipv6only: self.ipv6only,
            rcvbuf: self.rcvbuf,
            sndbuf: self.sndbuf,
            so_keepalive: self.so_keepalive,
            fastopen: self.fastopen,
            deferred: self.deferred,
        }
    }
}

/// `on`, `off`, or `[idle]:[interval]:[count]` with at least one of them, and one that is not 0.
fn so_keepalive(text: &str) -> Option<SoKeepalive> {
    let mut keepalive = SoKeepalive { on: true, idle_s: None, interval_s: None, count: None };
    match text {
        "on" => return Some(keepalive),
        "off" => return Some(SoKeepalive { on: false, ..keepalive }),
        _ => {}
    }
    let mut parts = text.split(':');
    let seconds = |part: Option<&str>| match part {
        None | Some("") => Some(None),
        Some(text) => value::seconds(text).map(|time| Some(time.as_secs()).filter(|s| *s > 0)),
    };
    keepalive.idle_s = seconds(parts.next())?;
    keepalive.interval_s = seconds(parts.next())?;
    keepalive.count = match parts.next() {
        None | Some("") => None,
        Some(text) => Some(value::number(text).and_then(|count| u32::try_from(count).ok())?)
            .filter(|count| *count > 0),
    };
    let is_empty =
        keepalive.idle_s.is_none() && keepalive.interval_s.is_none() && keepalive.count.is_none();
    (parts.next().is_none() && !is_empty).then_some(keepalive)
}

/// `server_name name ...;`
pub fn server_name(b: &mut Build, args: Args<'_>) -> Outcome {
    for text in args.all() {
        if text.contains('/') {
            let warning = format!("server name \"{text}\" has suspicious symbols");
            b.warn(Some(args.place()), warning);
        }
        let name = if let Some(pattern) = text.strip_prefix('~') {
            if pattern.is_empty() {
                return fault!("empty regex in server name \"{text}\"");
            }
            // Hosts are matched in lower case, so an upper-case letter would never match.
            let caseless = pattern.bytes().any(|b| b.is_ascii_uppercase());
            let regex = b.http.names.regex(pattern, caseless)?;
            ServerName { text: pattern.to_owned(), regex: Some(Arc::new(regex)) }
        } else {
            let is_invalid = (text.starts_with('*') && (text.len() < 3 || !text.starts_with("*.")))
                || text == ".";
            if is_invalid {
                return fault!("server name \"{text}\" is invalid");
            }
            let text = if text.eq_ignore_ascii_case("$hostname") {
                rustix::system::uname().nodename().to_string_lossy().into_owned()
            } else {
                text.clone()
            };
            ServerName { text: text.to_ascii_lowercase(), regex: None }
        };
        if let Some((_, server)) = b.http.server() {
            server.names.push(name);
        }
    }
    Ok(())
}

/// Ends a server: one without `listen` listens on port 80, or 8000 when not started by root, and
/// one without `server_name` answers requests without a host.
pub fn finish_server(b: &mut Build) -> Outcome {
    let Some((_, server)) = b.http.server() else { return Ok(()) };
    if server.names.is_empty() {
        server.names.push(ServerName { text: String::new(), regex: None });
    }
    if !server.listens.is_empty() {
        return Ok(());
    }
    let port = if crate::os::started_by_root() { 80 } else { 8000 };
    let address = ListenAddress::Inet((std::net::Ipv4Addr::UNSPECIFIED, port).into());
    let parameters = ListenParameters::default();
    add_listen(b, &parameters.of(address), &parameters, None)
}

impl AddressDraft {
    /// Builds the table of names. With one server no name matters, except to a regex that fills
    /// variables.
    pub fn freeze(self, servers: &[ServerDraft], warnings: &mut Vec<String>) -> Outcome<Address> {
        let default_server =
            self.default_server.or(self.servers.first().copied()).unwrap_or(ServerId(0));
        let captures = |id: &ServerId| {
            let server = servers.get(id.0 as usize);
            server.is_some_and(|server| {
                let mut regexes = server.names.iter().filter_map(|name| name.regex.as_ref());
                regexes.any(|regex| regex.compiled.captures_len() > 1)
            })
        };
        let mut names = ServerNames::default();
        if self.servers.len() > 1 || captures(&default_server) {
            for id in &self.servers {
                let Some(server) = servers.get(id.0 as usize) else { continue };
                for name in &server.names {
                    match names.add(name, *id) {
                        NameAdded::Yes => {}
                        NameAdded::Conflict => warnings.push(format!(
                            "conflicting server name \"{}\" on {}, ignored",
                            name.text, self.listen.name
                        )),
                        NameAdded::Invalid => {
                            return Err(Fault::nowhere(format!(
                                "invalid server name or wildcard \"{}\" on {}",
                                name.text, self.listen.name
                            )));
                        }
                    }
                }
            }
        }
        let AddressDraft { listen, proxy_protocol, .. } = self;
        Ok(Address { listen, proxy_protocol: proxy_protocol.is_asked, default_server, names })
    }
}

enum NameAdded {
    Yes,
    /// An earlier server has the name.
    Conflict,
    Invalid,
}

impl ServerNames {
    fn add(&mut self, name: &ServerName, id: ServerId) -> NameAdded {
        if let Some(regex) = &name.regex {
            self.regex.push((regex.clone(), id));
            return NameAdded::Yes;
        }
        let text = name.text.as_str();
        if text.contains("..") || text.matches('*').count() > 1 {
            return NameAdded::Invalid;
        }
        if let Some(bare) = text.strip_prefix('.').filter(|bare| !bare.is_empty()) {
            // Both of its names, or none.
            if self.exact.contains_key(bare.as_bytes()) {
                return NameAdded::Conflict;
            }
            let is_new = insert(&mut self.leading, text, id);
            inserted(is_new && insert(&mut self.exact, bare, id))
        } else if let Some(suffix) = text.strip_prefix('*').filter(|suffix| suffix.len() > 1) {
            inserted(insert(&mut self.leading, suffix, id))
        } else if let Some(prefix) =
            text.strip_suffix('*').filter(|p| p.len() > 1 && p.ends_with('.'))
        {
            inserted(insert(&mut self.trailing, prefix, id))
        } else if text.contains('*') {
            NameAdded::Invalid
        } else {
            inserted(insert(&mut self.exact, text, id))
        }
    }
}

fn insert(table: &mut HashMap<Box<[u8]>, ServerId>, name: &str, id: ServerId) -> bool {
    match table.entry(name.as_bytes().into()) {
        Entry::Vacant(entry) => {
            entry.insert(id);
            true
        }
        Entry::Occupied(_) => false,
    }
}

fn inserted(is_new: bool) -> NameAdded {
    if is_new { NameAdded::Yes } else { NameAdded::Conflict }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> ServerNames {
        let key = |s: &str| s.as_bytes().into();
        ServerNames {
            exact: HashMap::from([(key("a.org"), ServerId(1)), (key(""), ServerId(2))]),
            leading: HashMap::from([(key(".a.org"), ServerId(3)), (key(".x.a.org"), ServerId(4))]),
            trailing: HashMap::from([(key("www."), ServerId(5)), (key("www.b."), ServerId(6))]),
            regex: Vec::new(),
        }
    }

    #[test]
    fn exact_then_longest_leading_then_longest_trailing() {
        let names = names();
        assert_eq!(names.find(b"a.org"), Some(ServerId(1)));
        assert_eq!(names.find(b""), Some(ServerId(2)));
        assert_eq!(names.find(b"q.a.org"), Some(ServerId(3)));
        assert_eq!(names.find(b"q.r.a.org"), Some(ServerId(3)));
        assert_eq!(names.find(b"q.x.a.org"), Some(ServerId(4)));
        assert_eq!(names.find(b"www.c"), Some(ServerId(5)));
        assert_eq!(names.find(b"www.b.c"), Some(ServerId(6)));
        assert_eq!(names.find(b".a.org"), None);
        assert_eq!(names.find(b"www."), None);
        assert_eq!(names.find(b"other"), None);
    }
}
