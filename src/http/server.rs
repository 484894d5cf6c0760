//! The frozen http configuration: listening addresses, servers and how one is chosen by name.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::location::{Location, LocationTree};
use super::modules::upstream::Upstream;
use super::variable::Regex;

/// Indexes into the tables of [`Http`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServerId(pub u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocationId(pub u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressId(pub u32);

/// The `http` block, checked and frozen. Shared read-only by every shard.
#[derive(Debug, Default)]
pub struct Http {
    pub addresses: Vec<Address>,
    pub servers: Vec<Server>,
    /// Every location, `if` block and server level of all servers.
    pub locations: Vec<Location>,
    pub upstreams: Vec<Upstream>,
    /// Paths of access logs, absolute; settings name them by index.
    pub log_files: Vec<PathBuf>,
    /// How many slots a request needs for variables made by `set` and by named captures.
    pub variable_slots: usize,
    /// Names of those slots, for warnings.
    pub variable_names: Vec<Box<str>>,
}

impl Http {
    pub fn server(&self, id: ServerId) -> &Server {
        &self.servers[id.0 as usize]
    }

    pub fn location(&self, id: LocationId) -> &Location {
        &self.locations[id.0 as usize]
    }

    pub fn upstream(&self, id: UpstreamId) -> &Upstream {
        &self.upstreams[id.0 as usize]
    }

    pub fn address(&self, id: AddressId) -> &Address {
        &self.addresses[id.0 as usize]
    }
}

/// One address:port (or unix path) that is listened on, and the servers behind it.
#[derive(Debug)]
pub struct Address {
    pub listen: Listen,
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

/// `so_keepalive=on|off|idle:interval:count`; an empty part keeps the system's value.
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
