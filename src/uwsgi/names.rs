//! Names of request headers as names of variables, and which headers become one variable.

use std::cmp::Ordering;

use smallvec::SmallVec;

const HEADER_PREFIX: &[u8] = b"HTTP_";

/// Bytes that [`put_header_key`] puts before a name.
pub const HEADER_PREFIX_LENGTH: usize = HEADER_PREFIX.len();

/// Appends the name of the variable that stands for a request header, without a length: `HTTP_`,
/// then the name in upper case with `_` for `-` (RFC 3875 §4.1.18).
pub fn put_header_key(name: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(HEADER_PREFIX);
    out.extend(name.iter().copied().map(fold));
}

/// What a byte of a header's name is in that of its variable.
fn fold(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte.to_ascii_uppercase() }
}

/// Whether two header names become the same variable.
pub fn same_variable(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().copied().map(fold).eq(b.iter().copied().map(fold))
}

fn compare(a: &[u8], b: &[u8]) -> Ordering {
    a.iter().copied().map(fold).cmp(b.iter().copied().map(fold))
}

/// A set of header names, made once; asking it costs nothing for a name as long as none of them.
#[derive(Debug, Clone, Default)]
pub struct NameSet {
    /// Without `HTTP_`.
    names: Vec<Box<[u8]>>,
    /// Their lengths, as [`length_bit`] has them.
    lengths: u64,
}

impl NameSet {
    pub fn add(&mut self, name: &[u8]) {
        if !self.contains(name) {
            self.names.push(name.into());
            self.lengths |= length_bit(name);
        }
    }

    pub fn contains(&self, name: &[u8]) -> bool {
        self.lengths & length_bit(name) != 0
            && self.names.iter().any(|known| same_variable(known, name))
    }
}

fn length_bit(name: &[u8]) -> u64 {
    1 << name.len().min(63)
}

/// Which of a request's headers become one variable with another. Of most requests none do, and
/// that is found out without comparing names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Repeated {
    /// By place. Only names that are there more than once.
    entries: SmallVec<[Entry; 8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    at: u32,
    is_first: bool,
    next: Option<u32>,
}

/// What a header is among those of its variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurrence {
    Only,
    /// There are more behind it.
    First,
    Again,
}

impl Repeated {
    /// Looks through `count` names.
    #[expect(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        reason = "a mark is one of 64 bits in one of four words; n < group.len()"
    )]
    pub fn among<'n>(count: usize, name: impl Fn(usize) -> &'n [u8]) -> Self {
        // Two names of one variable have the same mark; two others seldom do.
        let (mut seen, mut twice, mut any_twice) = ([0_u64; 4], [0_u64; 4], 0);
        for at in 0..count {
            let (word, bit) = mark(name(at));
            let again = seen[word] & bit;
            twice[word] |= again;
            any_twice |= again;
            seen[word] |= bit;
        }
        if any_twice == 0 {
            return Self::default();
        }
        let mut places: SmallVec<[u32; 16]> = (0..count)
            .filter(|&at| {
                let (word, bit) = mark(name(at));
                twice[word] & bit != 0
            })
            .map(|at| at as u32)
            .collect();
        let name = |at: u32| name(at as usize);
        places.sort_unstable_by(|&a, &b| compare(name(a), name(b)).then(a.cmp(&b)));
        let mut entries = SmallVec::new();
        for group in places.chunk_by(|&a, &b| same_variable(name(a), name(b))) {
            if group.len() > 1 {
                entries.extend(group.iter().enumerate().map(|(n, &at)| Entry {
                    at,
                    is_first: n == 0,
                    next: group.get(n + 1).copied(),
                }));
            }
        }
        entries.sort_unstable_by_key(|entry: &Entry| entry.at);
        Repeated { entries }
    }

    pub fn occurrence(&self, at: usize) -> Occurrence {
        match self.entry(at) {
            Some(entry) if entry.is_first => Occurrence::First,
            Some(_) => Occurrence::Again,
            None => Occurrence::Only,
        }
    }

    /// This place and all behind it that are of the same variable.
    pub fn from(&self, at: usize) -> impl Iterator<Item = usize> + Clone + '_ {
        std::iter::successors(Some(at), |&at| self.entry(at)?.next.map(|next| next as usize))
    }

    fn entry(&self, at: usize) -> Option<Entry> {
        if self.entries.is_empty() {
            return None;
        }
        let found = self.entries.binary_search_by_key(&at, |entry| entry.at as usize).ok()?;
        self.entries.get(found).copied()
    }
}

/// Found by trying: with it, no two of the common headers have the same mark.
const FACTOR: u32 = 0xF1FD_42A3;

/// One of 256 marks, as word and bit: out of the length and three bytes, folded.
fn mark(name: &[u8]) -> (usize, u64) {
    let byte = |at: usize| name.get(at).map_or(0, |&byte| fold(byte));
    let length = name.len();
    let bytes = [
        length as u8,
        byte(length / 2),
        byte(length.wrapping_sub(1)),
        byte(length.wrapping_sub(2)),
    ];
    let mixed = u32::from_le_bytes(bytes).wrapping_mul(FACTOR) >> 24;
    ((mixed >> 6) as usize, 1 << (mixed & 63))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_become_one_variable() {
        assert!(same_variable(b"X-Name", b"x_name"));
        assert!(!same_variable(b"X-Name", b"X-Nam"));
        assert!(!same_variable(b"X-Name", b"X.Name"));
    }

    #[test]
    fn a_set_of_names() {
        let mut set = NameSet::default();
        assert!(!set.contains(b""));
        set.add(b"PROXY");
        set.add(&[b'A'; 100]);
        assert!(set.contains(b"proxy") && set.contains(&[b'a'; 100]));
        assert!(!set.contains(b"Prox-") && !set.contains(&[b'a'; 99]) && !set.contains(b""));
    }

    #[test]
    fn common_headers_are_told_apart_by_their_marks() {
        let names = "Host User-Agent Accept Accept-Language Accept-Encoding Referer \
            Connection Cookie Upgrade-Insecure-Requests Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site \
            Sec-Fetch-User Cache-Control If-None-Match If-Modified-Since Pragma DNT \
            Priority TE Content-Type Content-Length Origin Authorization \
            X-Requested-With X-Forwarded-For X-Forwarded-Proto X-Real-IP sec-ch-ua sec-ch-ua-mobile \
            sec-ch-ua-platform Sec-GPC Range Transfer-Encoding X-CSRF-Token Expect \
            Upgrade X-Request-ID Via"
            .split(' ')
            .collect::<Vec<_>>();
        let mut marks: Vec<_> = names.iter().map(|name| mark(name.as_bytes())).collect();
        marks.sort_unstable();
        marks.dedup();
        assert_eq!(marks.len(), names.len());
    }

    proptest! {
        #[test]
        fn header_keys_are_cgi_names(name in "[A-Za-z0-9-]{1,30}") {
            let mut key = Vec::new();
            put_header_key(name.as_bytes(), &mut key);
            let expected = format!("HTTP_{}", name.to_uppercase().replace('-', "_"));
            prop_assert_eq!(key, expected.into_bytes());
        }

        #[test]
        fn repeated_names_are_those_that_compare_so(names in vec("[aAb_-]{0,3}|[a-z]{8}", 0..60)) {
            let name = |at: usize| names[at].as_bytes();
            let repeated = Repeated::among(names.len(), name);
            for at in 0..names.len() {
                let same: Vec<usize> =
                    (0..names.len()).filter(|&other| same_variable(name(at), name(other))).collect();
                let expected = match *same {
                    [_] => Occurrence::Only,
                    [first, ..] if first == at => Occurrence::First,
                    _ => Occurrence::Again,
                };
                prop_assert_eq!(repeated.occurrence(at), expected);
                let behind: Vec<usize> = same.into_iter().filter(|&other| other >= at).collect();
                prop_assert_eq!(repeated.from(at).collect::<Vec<_>>(), behind);
            }
        }
    }
}
