//! The part of an upstream's body that a client asked for (`*_force_ranges`): what comes before it
//! and behind it is read and dropped.

use std::ops::Range;

use crate::http::modules::static_files::range;
use crate::http1::Span;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Bytes that are still to be passed over.
    pub skip: u64,
    /// Bytes that are still to be sent.
    pub take: u64,
    /// Of the whole body.
    length: u64,
}

impl Window {
    /// `range` is not empty and lies within `length`.
    pub fn new(range: Range<u64>, length: u64) -> Self {
        Window { skip: range.start, take: range.end.saturating_sub(range.start), length }
    }

    /// The value of `Content-Range`, before anything has been cut.
    pub fn content_range(&self) -> String {
        range::content_range(&(self.skip..self.skip.saturating_add(self.take)), self.length)
    }

    /// Cuts what does not belong to the part from the next pieces of the body; tells how many bytes
    /// are left of them.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "what is skipped is at most the piece, what is taken at most the rest of it"
    )]
    pub fn cut(&mut self, pieces: &mut [Span]) -> usize {
        let mut left = 0;
        for piece in pieces {
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            let start = piece.start as usize + skipped as usize;
            let taken = self.take.min((piece.end as usize - start) as u64);
            self.take -= taken;
            *piece = Span::new(start, start + taken as usize);
            left += taken as usize;
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a body is cut into pieces, the client gets the part.
        #[test]
        fn the_part_and_nothing_else(
            length in 1_usize..200,
            ends in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            sizes in prop::collection::vec(1_usize..40, 1..20),
        ) {
            let body: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let (a, b) = (ends.0.index(length), ends.1.index(length));
            let (start, end) = (a.min(b), a.max(b) + 1);
            let mut window = Window::new(start as u64..end as u64, length as u64);
            prop_assert_eq!(window.content_range(), format!("bytes {}-{}/{length}", start, end - 1));
            let (mut at, mut got) = (0, Vec::new());
            for size in sizes.into_iter().cycle() {
                if at >= length {
                    break;
                }
                let next = (at + size).min(length);
                let middle = at + (next - at) / 2;
                let mut pieces = [Span::new(at, middle), Span::new(middle, next)];
                let left = window.cut(&mut pieces);
                let before = got.len();
                for piece in pieces {
                    got.extend_from_slice(piece.of(&body));
                }
                prop_assert_eq!(got.len() - before, left);
                at = next;
            }
            prop_assert_eq!(&got[..], &body[start..end]);
        }
    }
}
