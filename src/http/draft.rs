//! The `http` block while it is read, and how it is frozen: inheritance, names, location trees.

use std::collections::HashMap;
use std::sync::Arc;

use super::computed::Computed;
use super::location::{Handler, LimitExcept, Location, LocationTree, Prefix};
use super::modules::access_log::{self, AccessFile, LogFormat, To};
use super::modules::core::Types;
use super::modules::sticky::Sessions;
use super::modules::upstream::{self, UpstreamDraft};
use super::modules::{self, Settings, geo, health_check, map, proxy, split_clients, uwsgi};
use super::server::{AddressDraft, Http, LocationId, Server, ServerDraft, ServerId, UpstreamId};
use super::variable::{Names, Regex, VariableSlot};
use crate::config::address::Address;
use crate::config::diagnostic::{Fault, Outcome, Place, fault};
use crate::resolver;
use crate::syslog;

/// Everything read so far between the braces of `http`.
#[derive(Debug, Default)]
pub struct Draft {
    /// What holds when no level says anything.
    defaults: Settings,
    /// The http level's own settings.
    http: Settings,
    /// Servers, locations and `if` blocks in the order they were opened: an outer one comes before
    /// what it holds. The index is the [`LocationId`].
    levels: Vec<Level>,
    /// The level being read; `None`: http itself.
    current: Option<usize>,
    pub servers: Vec<ServerDraft>,
    pub addresses: Vec<AddressDraft>,
    pub upstreams: Vec<UpstreamDraft>,
    /// The `upstream` block being read.
    pub upstream_at: Option<usize>,
    /// What an `upstream` block starts from.
    pub upstream_defaults: upstream::Settings,
    pub zones: upstream::Zones,
    pub resolvers: Vec<resolver::Servers>,
    /// What `sticky learn` knows, by zone.
    pub sessions: Vec<Arc<Sessions>>,
    pub names: Names,
    pub formats: Vec<Arc<LogFormat>>,
    pub log_files: Vec<AccessFile>,
    pub log_servers: Vec<Arc<syslog::Server>>,
    /// The `types` block being read.
    pub types: Types,
    /// The `map`, `geo` or `split_clients` block being read.
    pub map: Option<map::Draft>,
    pub geo: Option<geo::Draft>,
    pub split_clients: Option<split_clients::Draft>,
    pub matches: Vec<Arc<health_check::Match>>,
    /// The `match` block being read.
    pub match_block: Option<health_check::Match>,
    /// By slot.
    computed: Vec<Option<Computed>>,
}

/// A server, a location or an `if` block.
#[derive(Debug)]
pub struct Level {
    /// Index of the level around it; `None`: http.
    pub outer: Option<usize>,
    pub kind: Kind,
    pub name: Arc<str>,
    pub place: Place,
    pub settings: Settings,
    /// The content handler set last on this level.
    pub handler: Option<Handler>,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Server,
    /// `location name`, or `location ^~ name`, which turns regexes off.
    Prefix {
        no_regex: bool,
    },
    /// `location = name`
    Exact,
    /// `location ~ regex`
    Regex(Arc<Regex>),
    /// `location @name`
    Named,
    /// `if`, in a server or a location.
    If,
    /// `limit_except`, with the methods that it leaves alone.
    LimitExcept(Arc<[Box<str>]>),
}

impl Draft {
    pub fn add_builtin_formats(&mut self) -> Outcome {
        let format = access_log::combined(&mut self.names)?;
        self.formats.push(Arc::new(format));
        Ok(())
    }

    /// What was read so far into the http level were the defaults.
    pub fn keep_defaults(&mut self) {
        self.defaults = std::mem::take(&mut self.http);
        self.defaults.fill_absent();
    }

    /// The `upstream` block being read.
    pub fn upstream_block(&mut self) -> Option<&mut UpstreamDraft> {
        self.upstreams.get_mut(self.upstream_at?)
    }

    /// The settings of the level being read.
    pub fn level(&mut self) -> &mut Settings {
        match self.current.and_then(|at| self.levels.get_mut(at)) {
            Some(level) => &mut level.settings,
            None => &mut self.http,
        }
    }

    /// The server, location or `if` being read.
    pub fn current(&self) -> Option<&Level> {
        self.levels.get(self.current?)
    }

    pub fn set_handler(&mut self, handler: Handler) {
        if let Some(level) = self.current.and_then(|at| self.levels.get_mut(at)) {
            level.handler = Some(handler);
        }
    }

    /// Sets how a slot's variable is computed; of several blocks for one variable the last one holds.
    #[expect(clippy::indexing_slicing, reason = "`computed` is made long enough for the slot")]
    pub fn compute(&mut self, slot: VariableSlot, computed: Computed) {
        let at = usize::from(slot.0);
        if self.computed.len() <= at {
            self.computed.resize_with(at + 1, || None);
        }
        self.computed[at] = Some(computed);
    }

    /// Opens a level inside the current one.
    pub fn open(&mut self, kind: Kind, name: &str, place: &Place) -> LocationId {
        let at = self.levels.len();
        self.levels.push(Level {
            outer: self.current,
            kind,
            name: name.into(),
            place: place.clone(),
            settings: Settings::default(),
            handler: None,
        });
        self.current = Some(at);
        LocationId(at as u32)
    }

    /// Whether the level being read has a `limit_except` already.
    pub fn has_limit_except(&self) -> bool {
        let inside = |level: &&Level| level.outer == self.current;
        self.levels.iter().filter(inside).any(|level| matches!(level.kind, Kind::LimitExcept(_)))
    }

    /// The id of the level that is opened next.
    pub fn next_id(&self) -> LocationId {
        LocationId(self.levels.len() as u32)
    }

    pub fn close(&mut self) {
        self.current = self.current().and_then(|level| level.outer);
    }

    /// Opens a server: a level, and an entry in the table of servers.
    pub fn open_server(&mut self, place: &Place) {
        let level = self.open(Kind::Server, "", place);
        self.servers.push(ServerDraft::new(level));
    }

    /// The server being read.
    pub fn server(&mut self) -> Option<(ServerId, &mut ServerDraft)> {
        let id = ServerId(self.servers.len().checked_sub(1)? as u32);
        self.servers.last_mut().map(|server| (id, server))
    }

    /// The upstream of this name, or a new one: an explicit block when `block` is set, else the
    /// target of a `*_pass` at `place`.
    pub fn upstream(
        &mut self,
        address: &Address,
        default_port: Option<u16>,
        block: bool,
        place: &Place,
    ) -> Outcome<UpstreamId> {
        let port = address.port();
        for (at, known) in self.upstreams.iter_mut().enumerate() {
            if !known.name.eq_ignore_ascii_case(&address.host_text) {
                continue;
            }
            let name = &address.host_text;
            if block && known.explicit {
                return fault!("duplicate upstream \"{name}\"");
            }
            if known.explicit
                && let Some(port) = port
            {
                return fault!("upstream \"{name}\" may not have port {port}");
            }
            if block {
                if let Some(port) = known.port {
                    let text = format!("upstream \"{name}\" may not have port {port}");
                    return Err(Fault::at(text, known.place.clone()));
                }
                known.explicit = true;
                known.place = place.clone();
                known.name = name.as_str().into();
                return Ok(UpstreamId(at as u32));
            }
            let ports = (known.port.or(known.default_port), port.or(default_port));
            if !known.explicit && matches!(ports, (Some(known), Some(port)) if known != port) {
                continue;
            }
            return Ok(UpstreamId(at as u32));
        }
        let id = UpstreamId(self.upstreams.len() as u32);
        self.upstreams.push(UpstreamDraft {
            name: address.host_text.as_str().into(),
            port,
            default_port,
            explicit: block,
            place: place.clone(),
            settings: upstream::Settings::default(),
            address: address.clone(),
            peers: Vec::new(),
            zone: None,
            balance: None,
            sticky: None,
            names: Vec::new(),
            queue: None,
            resolver: modules::resolver::Settings::default(),
        });
        Ok(id)
    }

    /// Ends the block: everything that needs all of it.
    ///
    /// The order is nginx's, so that of several errors the same one is reported: upstreams, levels
    /// outside in, locations, variables, server names.
    pub fn freeze(mut self, warnings: &mut Vec<String>) -> Outcome<Http> {
        let mut upstreams = Vec::with_capacity(self.upstreams.len());
        let mut resolver = self.http.resolver.clone();
        resolver.inherit(&self.defaults.resolver);
        for draft in std::mem::take(&mut self.upstreams) {
            upstreams.push(draft.freeze(&self.upstream_defaults, &resolver)?);
        }
        self.inherit()?;
        self.keep_used_log_files();
        let trees = self.trees()?;
        self.names.check()?;
        self.zones.check()?;
        let names = &self.servers;
        let addresses = std::mem::take(&mut self.addresses);
        let addresses = addresses
            .into_iter()
            .map(|address| address.freeze(names, warnings))
            .collect::<Outcome<_>>()?;
        let mut named = self.named_locations();
        let mut locations: Vec<Location> = Vec::with_capacity(self.levels.len());
        let mut servers = Vec::with_capacity(self.servers.len());
        let mut trees = trees.into_iter();
        let mut server_trees = HashMap::new();
        for (at, level) in self.levels.into_iter().enumerate() {
            let tree = trees.next().unwrap_or_default();
            let nested = match level.kind {
                Kind::Server => {
                    server_trees.insert(at, tree);
                    LocationTree::default()
                }
                _ => tree,
            };
            let prefix = match level.kind {
                Kind::Prefix { .. } | Kind::Exact => Some(level.name.clone()),
                // What is around a level was opened before it.
                Kind::If | Kind::LimitExcept(_) => level
                    .outer
                    .and_then(|outer| locations.get(outer))
                    .and_then(|outer| outer.prefix.clone()),
                Kind::Server | Kind::Regex(_) | Kind::Named => None,
            };
            if let (Kind::LimitExcept(methods), Some(outer)) =
                (level.kind, level.outer.and_then(|outer| locations.get_mut(outer)))
            {
                let location = LocationId(at as u32);
                outer.limit_except = Some(LimitExcept { methods, location });
            }
            locations.push(Location {
                prefix,
                name: level.name,
                settings: level.settings,
                handler: level.handler,
                nested,
                limit_except: None,
            });
        }
        for server in self.servers {
            let at = server.level.0 as usize;
            servers.push(Server {
                name: server.first_name(),
                level: server.level,
                locations: server_trees.remove(&at).unwrap_or_default(),
                named: named.remove(&at).unwrap_or_default(),
            });
        }
        let health_checks = health_check::freeze(&locations, &upstreams, &self.matches)?;
        let set_variables = self.names.set_slots();
        let variable_names = self.names.into_names();
        Ok(Http {
            addresses,
            servers,
            locations,
            upstreams,
            resolvers: self.resolvers,
            log_files: self.log_files,
            log_servers: self.log_servers,
            variable_slots: variable_names.len(),
            variable_names,
            set_variables,
            computed: self.computed,
            health_checks,
        })
    }

    /// Fills every level from the one around it, and works out what follows from it.
    fn inherit(&mut self) -> Outcome {
        self.http.inherit(&self.defaults);
        self.http.finish()?;
        for at in 0..self.levels.len() {
            // What is around a level was opened before it.
            let (before, rest) = self.levels.split_at_mut(at);
            let Some(level) = rest.first_mut() else { break };
            let outer = level.outer.and_then(|outer| before.get(outer));
            let keeps = |handler: &Handler| match level.kind {
                // An `if` block keeps the content handler of its location,
                Kind::If => true,
                // and a `limit_except` block an upstream.
                Kind::LimitExcept(_) => handler.is_upstream(),
                _ => false,
            };
            if let Some(outer) = outer
                && level.handler.is_none()
                && let Some(handler) = outer.handler.filter(keeps)
            {
                level.handler = Some(handler);
                level.settings.proxy.pass = outer.settings.proxy.pass.clone();
                level.settings.uwsgi.pass = outer.settings.uwsgi.pass.clone();
            }
            level.settings.inherit(outer.map_or(&self.http, |outer| &outer.settings));
            if matches!(level.kind, Kind::Server) {
                level.settings.core.finish()?;
            }
            level.settings.finish()?;
        }
        Ok(())
    }

    /// Drops the log files that no level writes to: the default one, mostly.
    fn keep_used_log_files(&mut self) {
        let mut used: Vec<AccessFile> = Vec::new();
        for level in &mut self.levels {
            for log in level.settings.access_log.access_log.entries_mut() {
                let To::File(file) = &mut log.to else { continue };
                let Some(wanted) = self.log_files.get(*file) else { continue };
                *file = used.iter().position(|known| known == wanted).unwrap_or_else(|| {
                    let at = used.len();
                    used.push(wanted.clone());
                    at
                });
            }
        }
        self.log_files = used;
    }

    /// The tree of the locations directly inside each level.
    fn trees(&self) -> Outcome<Vec<LocationTree>> {
        let mut trees: Vec<LocationTree> = Vec::new();
        trees.resize_with(self.levels.len(), LocationTree::default);
        for (at, level) in self.levels.iter().enumerate() {
            let id = LocationId(at as u32);
            let Some(tree) = level.outer.and_then(|outer| trees.get_mut(outer)) else { continue };
            let is_in_regex = level
                .outer
                .and_then(|outer| self.levels.get(outer))
                .is_some_and(|outer| matches!(outer.kind, Kind::Regex(_)));
            match &level.kind {
                // As in nginx, which makes no tree of these.
                Kind::Prefix { .. } | Kind::Exact if is_in_regex => {}
                Kind::Prefix { .. } | Kind::Exact => add_prefix(tree, id, level)?,
                Kind::Regex(regex) => tree.regexes.push((regex.clone(), id)),
                Kind::Server | Kind::Named | Kind::If | Kind::LimitExcept(_) => {}
            }
        }
        for tree in &mut trees {
            tree.seal();
        }
        Ok(trees)
    }

    /// `@name` locations under the level of their server.
    fn named_locations(&self) -> HashMap<usize, HashMap<Arc<str>, LocationId>> {
        let mut named: HashMap<usize, HashMap<Arc<str>, LocationId>> = HashMap::new();
        for (at, level) in self.levels.iter().enumerate() {
            if let (Kind::Named, Some(server)) = (&level.kind, level.outer) {
                let locations = named.entry(server).or_default();
                // Of two with the same name the first one is found.
                locations.entry(level.name.clone()).or_insert(LocationId(at as u32));
            }
        }
        named
    }
}

fn add_prefix(tree: &mut LocationTree, id: LocationId, level: &Level) -> Outcome {
    let name: &[u8] = level.name.as_bytes();
    let known = tree.prefixes.iter().position(|prefix| *prefix.name == *name);
    let at = known.unwrap_or(tree.prefixes.len());
    if known.is_none() {
        tree.prefixes.push(Prefix {
            name: name.into(),
            exact: None,
            prefix: None,
            no_regex: false,
            parent: None,
        });
    }
    let Some(entry) = tree.prefixes.get_mut(at) else { return Ok(()) };
    let slot = match level.kind {
        Kind::Exact => &mut entry.exact,
        Kind::Prefix { no_regex } => {
            entry.no_regex |= no_regex;
            &mut entry.prefix
        }
        Kind::Server | Kind::Regex(_) | Kind::Named | Kind::If | Kind::LimitExcept(_) => {
            return Ok(());
        }
    };
    if slot.replace(id).is_some() {
        let text = format!("duplicate location \"{}\"", level.name);
        return Err(Fault::at(text, level.place.clone()));
    }
    if auto_redirects(&level.kind, &level.name, level.handler)
        && let Some((_, without_slash)) = name.split_last()
        && !tree.redirects.iter().any(|(name, _)| **name == *without_slash)
    {
        tree.redirects.push((without_slash.into(), id));
    }
    Ok(())
}

/// Whether a request for the name without its last slash is redirected to the name.
fn auto_redirects(kind: &Kind, name: &str, handler: Option<Handler>) -> bool {
    let is_prefix = matches!(kind, Kind::Prefix { .. } | Kind::Exact);
    is_prefix && handler.is_some_and(Handler::is_upstream) && name.ends_with('/')
}

impl Settings {
    /// Values that no directive's default can name, because absence is the value.
    fn fill_absent(&mut self) {
        self.core.fill_absent();
        self.proxy.fill_absent();
        self.resolver.fill_absent();
        self.uwsgi.fill_absent();
    }

    /// Checks a level whose settings are complete, and works out what its requests need.
    fn finish(&mut self) -> Outcome {
        self.proxy.exchange.finish("proxy", proxy::HIDDEN)?;
        self.uwsgi.exchange.finish("uwsgi", uwsgi::HIDDEN)?;
        self.proxy.head = Arc::new(self.proxy.head_plan());
        self.uwsgi.plan = Arc::new(self.uwsgi.block_plan());
        Ok(())
    }
}
