//! Locations, and how one is chosen for a URI (http-core, section 5).

use std::sync::Arc;

use super::modules::Settings;
use super::server::LocationId;
use super::variable::Regex;

/// A location, an `if` block, a `limit_except` block, or the level of a server itself: a name and
/// everything it says, inheritance done.
#[derive(Debug)]
pub struct Location {
    /// As written: the prefix, the regex, `@name`; empty for a server level or an `if`.
    pub name: Arc<str>,
    /// The part of the URI that the location stands for: its name, if that is a prefix; of an `if`,
    /// that of the location around it.
    pub prefix: Option<Arc<str>>,
    pub settings: Settings,
    pub handler: Option<Handler>,
    pub nested: LocationTree,
    pub limit_except: Option<LimitExcept>,
}

/// `limit_except METHOD ... { … }`: all other methods are answered under the block's settings.
#[derive(Debug)]
pub struct LimitExcept {
    /// In capitals, as a request spells them.
    pub methods: Arc<[Box<str>]>,
    pub location: LocationId,
}

impl LimitExcept {
    pub fn limits(&self, method: &[u8]) -> bool {
        !self.methods.iter().any(|allowed| allowed.as_bytes() == method)
    }
}

/// Who answers in the content phase when it is not the static file module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    Proxy,
    Uwsgi,
    /// `ringx_status`
    Status,
    StubStatus,
}

impl Handler {
    /// Whether it passes requests on to an upstream.
    pub fn is_upstream(self) -> bool {
        matches!(self, Handler::Proxy | Handler::Uwsgi)
    }
}

/// The locations of one level.
#[derive(Debug, Default)]
pub struct LocationTree {
    /// Prefix and exact locations, sorted by name. The nearest shorter entry that is a prefix of
    /// another one is found through `parent`.
    pub prefixes: Vec<Prefix>,
    pub regexes: Vec<(Arc<Regex>, LocationId)>,
    /// Proxying prefix locations whose names end in `/`, under the name without it, sorted: a
    /// request for that name is redirected unless a location has it.
    pub redirects: Vec<(Box<[u8]>, LocationId)>,
}

#[derive(Debug)]
pub struct Prefix {
    pub name: Box<[u8]>,
    /// `= name`.
    pub exact: Option<LocationId>,
    /// `name` or `^~ name`.
    pub prefix: Option<LocationId>,
    /// `^~`: turns off the regexes of its level.
    pub no_regex: bool,
    /// Index of the longest other entry that this name starts with.
    pub parent: Option<u32>,
}

/// What the prefix search of one level found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// An `=` location: the search is over.
    Exact(LocationId),
    Prefix {
        location: LocationId,
        no_regex: bool,
    },
    /// The URI plus `/` is the name of a proxying location.
    AutoRedirect(LocationId),
    None,
}

impl LocationTree {
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.regexes.is_empty()
    }

    /// The longest prefix location of this level for `uri`, or an exact one.
    #[expect(
        clippy::indexing_slicing,
        reason = "found by searches in these lists; a `parent` is an entry by `seal`"
    )]
    pub fn find_prefix(&self, uri: &[u8]) -> Found {
        // The entry itself, or the last one sorted before the URI: an ancestor of every candidate.
        let at = match self.prefixes.binary_search_by(|p| p.name.as_ref().cmp(uri)) {
            Ok(at) => {
                if let Some(id) = self.prefixes[at].exact {
                    return Found::Exact(id);
                }
                Some(at)
            }
            Err(at) => {
                if let Ok(at) = self.redirects.binary_search_by(|(name, _)| name.as_ref().cmp(uri))
                {
                    return Found::AutoRedirect(self.redirects[at].1);
                }
                at.checked_sub(1)
            }
        };
        let mut candidate = at.map(|at| &self.prefixes[at]);
        while let Some(entry) = candidate {
            if let Some(location) = entry.prefix
                && uri.starts_with(&entry.name)
            {
                return Found::Prefix { location, no_regex: entry.no_regex };
            }
            candidate = entry.parent.map(|parent| &self.prefixes[parent as usize]);
        }
        Found::None
    }

    /// Sorts the entries and links each to the longest other entry it starts with. To be called
    /// once, when all entries are in.
    #[expect(
        clippy::indexing_slicing,
        reason = "up to the number of entries; the stack holds such numbers"
    )]
    pub fn seal(&mut self) {
        self.prefixes.sort_by(|a, b| a.name.cmp(&b.name));
        self.redirects.sort();
        let mut stack: Vec<u32> = Vec::new();
        for at in 0..self.prefixes.len() {
            while let Some(&top) = stack.last() {
                if self.prefixes[at].name.starts_with(&self.prefixes[top as usize].name) {
                    break;
                }
                stack.pop();
            }
            self.prefixes[at].parent = stack.last().copied();
            stack.push(at as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(names: &[(&str, &str)]) -> LocationTree {
        let mut tree = LocationTree::default();
        for (id, (modifier, name)) in names.iter().enumerate() {
            let id = LocationId(id as u32);
            tree.prefixes.push(Prefix {
                name: name.as_bytes().into(),
                exact: (*modifier == "=").then_some(id),
                prefix: (*modifier != "=").then_some(id),
                no_regex: *modifier == "^~",
                parent: None,
            });
        }
        tree.redirects.push((b"/app".as_slice().into(), LocationId(1)));
        tree.seal();
        tree
    }

    fn found(tree: &LocationTree, uri: &str) -> Found {
        tree.find_prefix(uri.as_bytes())
    }

    #[test]
    fn the_longest_prefix_wins() {
        let tree = tree(&[("", "/"), ("", "/a"), ("^~", "/a/b"), ("=", "/a/c"), ("", "/zz")]);
        let prefix = |id, no_regex| Found::Prefix { location: LocationId(id), no_regex };
        assert_eq!(found(&tree, "/"), prefix(0, false));
        assert_eq!(found(&tree, "/b"), prefix(0, false));
        assert_eq!(found(&tree, "/ab"), prefix(1, false));
        assert_eq!(found(&tree, "/a/b"), prefix(2, true));
        assert_eq!(found(&tree, "/a/bcd"), prefix(2, true));
        assert_eq!(found(&tree, "/a/c"), Found::Exact(LocationId(3)));
        assert_eq!(found(&tree, "/a/cd"), prefix(1, false));
        assert_eq!(found(&tree, "/a/z"), prefix(1, false));
        assert_eq!(found(&tree, "/z"), prefix(0, false));
        assert_eq!(found(&tree, "/zzz"), prefix(4, false));
    }

    #[test]
    fn a_name_without_its_slash_redirects() {
        let tree = tree(&[("", "/"), ("", "/app/"), ("", "/app.js")]);
        assert_eq!(found(&tree, "/app"), Found::AutoRedirect(LocationId(1)));
        assert_eq!(
            found(&tree, "/app/x"),
            Found::Prefix { location: LocationId(1), no_regex: false }
        );
    }
}
