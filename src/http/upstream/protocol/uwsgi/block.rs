//! The block of variables in a message: how they are put, and what it measures.
//!
//! Putting never fails. What is too big for 16 bits of length is left out and remembered, so that the
//! log can tell what the request would have come to.

use super::super::{Message, Oversized};
use super::Hint;
use crate::http1::Span;
use crate::uwsgi::{BlockSize, HEADER_LENGTH, HEADER_PREFIX_LENGTH, LENGTH_MAX, put_header_key};

/// A value at least this long is sent from where it was received instead of being copied.
const BY_REFERENCE: usize = 1024;
/// More of them are copied all the same: where they go is told within the message, without a list of
/// its own on the heap.
const INSERTS_MAX: usize = 2;

impl Message {
    /// A variable whose value is made in place. `encoded_key` begins with its length.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "`make` only appends: two bytes of length stand before it"
    )]
    pub(super) fn put_made(
        &mut self,
        encoded_key: &[u8],
        if_not_empty: bool,
        make: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(encoded_key);
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        make(&mut self.bytes);
        let length = self.bytes.len() - length_at - 2;
        if length == 0 && if_not_empty {
            self.bytes.truncate(start);
        } else if let Ok(length) = u16::try_from(length) {
            self.bytes[length_at..length_at + 2].copy_from_slice(&length.to_le_bytes());
        } else {
            self.bytes.truncate(length_at + 2);
            self.leave_out(Span::new(start + 2, length_at), length, length);
        }
    }

    /// The variable of a client's header, whose value has all of these parts.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "lengths of parts of one head; the key has been put"
    )]
    pub(super) fn put_header(
        &mut self,
        client_head: &[u8],
        name: &[u8],
        separator: &[u8],
        parts: impl Iterator<Item = Span> + Clone,
    ) {
        let (mut length, mut count) = (0, 0);
        for part in parts.clone() {
            length += part.len();
            count += 1;
        }
        length += separator.len() * usize::saturating_sub(count, 1);

        let whole_key_length = HEADER_PREFIX_LENGTH + name.len();
        let Ok(key_length) = u16::try_from(whole_key_length) else {
            return self.put_cut_key(name, length);
        };
        self.bytes.extend_from_slice(&key_length.to_le_bytes());
        put_header_key(name, &mut self.bytes);
        let Ok(encoded_length) = u16::try_from(length) else {
            let key = Span::new(self.bytes.len() - whole_key_length, self.bytes.len());
            self.bytes.extend_from_slice(&[0; 2]);
            return self.leave_out(key, length, length);
        };
        self.bytes.extend_from_slice(&encoded_length.to_le_bytes());
        for (n, part) in parts.enumerate() {
            if n > 0 {
                self.bytes.extend_from_slice(separator);
            }
            self.put_part(client_head, part);
        }
    }

    fn put_part(&mut self, client_head: &[u8], part: Span) {
        if part.len() >= BY_REFERENCE && self.inserts.len() < INSERTS_MAX {
            self.inserts.push((self.bytes.len(), part));
        } else {
            self.bytes.extend_from_slice(part.of(client_head));
        }
    }

    /// A header whose name alone is too long.
    #[cold]
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "as many bytes have been put; lengths of parts of one head"
    )]
    fn put_cut_key(&mut self, name: &[u8], value_length: usize) {
        let (kept, rest) = name.split_at(LENGTH_MAX - HEADER_PREFIX_LENGTH);
        self.bytes.extend_from_slice(&[u8::MAX; 2]);
        put_header_key(kept, &mut self.bytes);
        let key = Span::new(self.bytes.len() - LENGTH_MAX, self.bytes.len());
        self.bytes.extend_from_slice(&[0; 2]);
        self.leave_out(key, value_length, value_length + rest.len());
    }

    #[cold]
    fn leave_out(&mut self, key: Span, value_length: usize, missing: usize) {
        let oversized = self.oversized.get_or_insert(Oversized { missing: 0, key, value_length });
        oversized.missing = oversized.missing.saturating_add(missing);
        if value_length > oversized.value_length {
            (oversized.key, oversized.value_length) = (key, value_length);
        }
    }

    /// Bytes of the block, also those that did not fit.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "the bytes begin with a header; the rest is lengths of parts of one head"
    )]
    pub(super) fn block_length(&self) -> usize {
        let inserted = self.inserts.iter().map(|(_, span)| span.len()).sum::<usize>();
        let missing = self.oversized.map_or(0, |oversized| oversized.missing);
        self.bytes.len() - HEADER_LENGTH + inserted + missing
    }

    /// What is in the block, for the log: walks all of it.
    pub(super) fn block_size(&self, client_head: &[u8]) -> BlockSize {
        let slices = self.slices(client_head);
        let packet = slices.iter().map(|slice| &**slice).collect::<Vec<_>>().concat();
        let mut size = BlockSize::of(packet.get(HEADER_LENGTH..).unwrap_or_default());
        if let Some(Oversized { missing, key, value_length }) = self.oversized {
            size.bytes = size.bytes.saturating_add(missing);
            let most = size.largest.as_ref().map_or(0, |&(_, most)| most);
            if value_length >= most {
                size.largest = Some((key.of(&self.bytes).into(), value_length));
            }
        }
        size
    }

    /// What the log line about a server that hung up without an answer is to say, if this is a uwsgi
    /// packet that it may have refused for its size.
    pub fn hint(&self, client_head: &[u8]) -> Option<Hint> {
        if !self.is_packet {
            return None;
        }
        let size = self.block_size(client_head);
        size.is_uncommon().then_some(Hint(size))
    }
}
