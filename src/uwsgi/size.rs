//! A finished block in numbers, for the error log: what an operator needs to know when it is too
//! big for the server.

use std::fmt;

use super::{Pair, take_string};
use crate::error_log::escape;

/// Servers as they come take blocks of 4096 bytes (`buffer-size`) with 128 variables (`max-vars`).
const BYTES_TAKEN: usize = 4096;
const VARIABLES_TAKEN: usize = 128;

/// Bytes of a name that are shown.
const NAME_MAX: usize = 64;

/// How big a block is, and what makes it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSize {
    pub bytes: usize,
    pub variables: usize,
    /// The key of the variable with the longest value (the first of them), and that value's length.
    pub largest: Option<(Box<[u8]>, usize)>,
}

impl BlockSize {
    /// Walks through a block. What is no variable (`uwsgi_string` may append anything) counts as
    /// bytes alone.
    #[expect(clippy::arithmetic_side_effects, reason = "counts pairs in memory")]
    pub fn of(block: &[u8]) -> Self {
        let (mut variables, mut largest) = (0, None::<Pair<'_>>);
        let mut rest = block;
        while let Some(key) = take_string(&mut rest)
            && let Some(value) = take_string(&mut rest)
        {
            variables += 1;
            if largest.is_none_or(|(_, most)| value.len() > most.len()) {
                largest = Some((key, value));
            }
        }
        let largest = largest.map(|(key, value)| (key.into(), value.len()));
        BlockSize { bytes: block.len(), variables, largest }
    }

    /// Whether a server that has been told nothing else may refuse it.
    pub fn is_uncommon(&self) -> bool {
        self.bytes > BYTES_TAKEN || self.variables > VARIABLES_TAKEN
    }
}

/// `uwsgi block 5318 bytes, 31 vars, largest HTTP_COOKIE 4012 bytes`
impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uwsgi block {} bytes, {} vars", self.bytes, self.variables)?;
        if let Some((key, length)) = &self.largest {
            let shown = key.get(..NAME_MAX).unwrap_or(key);
            let cut = if key.len() > NAME_MAX { "..." } else { "" };
            write!(f, ", largest {}{cut} {length} bytes", escape(shown))?;
        }
        Ok(())
    }
}

/// Walking finds what decoding does, and stops where that fails.
pub fn fuzz_block_size(block: &[u8]) {
    let size = BlockSize::of(block);
    assert_eq!(size.bytes, block.len());
    assert!(size.variables <= block.len() / 4);
    assert_eq!(size.largest.is_some(), size.variables > 0);
    if let Ok(pairs) = super::decode_block(block) {
        assert_eq!(size.variables, pairs.len());
        let most = pairs.iter().map(|(_, value)| value.len()).max();
        assert_eq!(size.largest.as_ref().map(|&(_, length)| length), most);
        let first = pairs.iter().find(|(_, value)| Some(value.len()) == most);
        assert_eq!(size.largest.as_ref().map(|(key, _)| &**key), first.map(|&(key, _)| key));
    }
    let shown = size.to_string();
    assert!(shown.len() < 400 && shown.bytes().all(|byte| (b' '..0x7f).contains(&byte)));
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::uwsgi::put_pair;

    fn block(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut block = Vec::new();
        for (key, value) in pairs {
            put_pair(&mut block, key, value).unwrap();
        }
        block
    }

    #[test]
    fn in_words() {
        let cookie = [b'c'; 4012];
        let block = block(&[(b"A", b"1"), (b"HTTP_COOKIE", &cookie), (b"EMPTY", b"")]);
        let size = BlockSize::of(&block);
        let text = "uwsgi block 4042 bytes, 3 vars, largest HTTP_COOKIE 4012 bytes";
        assert_eq!(size.to_string(), text);
        assert_eq!(BlockSize::of(b"").to_string(), "uwsgi block 0 bytes, 0 vars");
    }

    #[test]
    fn long_and_odd_names_are_shown_cut_and_escaped() {
        let size = BlockSize::of(&block(&[(&[b'\n'; 100], b"")]));
        let shown = r"\x0A".repeat(64);
        assert_eq!(
            size.to_string(),
            format!("uwsgi block 104 bytes, 1 vars, largest {shown}... 0 bytes")
        );
    }

    #[test]
    fn bytes_that_are_no_variables() {
        let mut block = block(&[(b"A", b"1")]);
        block.extend_from_slice(b"any string");
        let size = BlockSize::of(&block);
        assert_eq!((size.bytes, size.variables), (16, 1));
    }

    #[test]
    fn what_servers_take() {
        let size = |bytes, variables| BlockSize { bytes, variables, largest: None };
        assert!(!size(4096, 128).is_uncommon());
        assert!(size(4097, 1).is_uncommon() && size(1000, 129).is_uncommon());
    }

    proptest! {
        #[test]
        fn any_bytes(block in vec(any::<u8>(), 0..300)) {
            fuzz_block_size(&block);
        }

        #[test]
        fn any_pairs(
            pairs in vec((vec(any::<u8>(), 1..100), vec(any::<u8>(), 0..50)), 0..30),
            tail in vec(0_u8..5, 0..20),
        ) {
            let mut block = Vec::new();
            for (key, value) in &pairs {
                put_pair(&mut block, key, value).unwrap();
            }
            fuzz_block_size(&block);
            prop_assert_eq!(BlockSize::of(&block).variables, pairs.len());
            block.extend_from_slice(&tail);
            fuzz_block_size(&block);
        }
    }
}
