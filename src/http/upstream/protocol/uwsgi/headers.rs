//! The client's headers as variables: repeated ones are one, at the first one's place.

use super::super::Message;
use crate::http::tunnel::handshake::HTTP2_SETTINGS;
use crate::http1::Span;
use crate::http1::header::{Field, Known};
use crate::uwsgi::{
    HEADER_LENGTH, LENGTH_MAX, NameSet, Occurrence, Repeated, decode_block, put_header_key,
    same_variable,
};

/// Which headers are left out, beside Host.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// What variables of the configuration stand for.
    pub suppressed: &'a NameSet,
    /// Transfer-Encoding: the body has been decoded, or was sent to another server and is no more.
    pub coding: bool,
    /// Upgrade and what belongs to it, in any spelling: it is kept back.
    pub upgrade: bool,
    /// Connection and Keep-Alive: the connection to the server is not the client's.
    pub connection: bool,
}

impl Left<'_> {
    fn contains(&self, field: &Field, name: &[u8]) -> bool {
        field.known == Known::Host
            || (self.coding && field.known == Known::TransferEncoding)
            || (self.upgrade
                && (same_variable(name, b"Upgrade") || same_variable(name, HTTP2_SETTINGS)))
            || (self.connection
                && (same_variable(name, b"Connection") || same_variable(name, b"Keep-Alive")))
            || self.suppressed.contains(name)
    }
}

/// Puts them. `head` is what their spans refer to.
#[expect(clippy::indexing_slicing, reason = "`Repeated` tells of places among these fields")]
pub fn put(head: &[u8], fields: &[Field], left: &Left<'_>, message: &mut Message) {
    let repeated = Repeated::among(fields.len(), |at| fields[at].name.of(head));
    for (at, field) in fields.iter().enumerate() {
        let name = field.name.of(head);
        if left.contains(field, name) {
            continue;
        }
        let separator: &[u8] = if field.known == Known::Cookie { b"; " } else { b", " };
        match repeated.occurrence(at) {
            Occurrence::Only => {
                message.put_header(head, name, separator, std::iter::once(field.value));
            }
            Occurrence::First => {
                let values = repeated.from(at).map(|at| fields[at].value);
                message.put_header(head, name, separator, values);
            }
            Occurrence::Again => {}
        }
    }
}

/// Any lines as headers: the block decodes to one variable for each name, with all of its values, in
/// the order in which the names come first. The first byte says what is left out.
#[expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "the property that is tested"
)]
pub fn fuzz_client_headers(data: &[u8]) {
    let (flags, data) = data.split_first().map_or((0, data), |(&flags, rest)| (flags, rest));
    let mut head = Vec::new();
    let mut fields = Vec::new();
    for line in data.split(|&byte| byte == b'\n') {
        let (name, value) = line.split_at(memchr::memchr(b':', line).unwrap_or(line.len()));
        let start = head.len();
        head.extend_from_slice(line);
        if !name.is_empty() {
            fields.push(Field {
                name: Span::new(start, start + name.len()),
                value: Span::new(start + name.len(), start + name.len() + value.len()),
                known: Known::of(name),
            });
        }
    }
    let mut suppressed = NameSet::default();
    if flags & 1 != 0 {
        suppressed.add(b"A");
    }
    let left = Left {
        suppressed: &suppressed,
        coding: flags & 2 != 0,
        upgrade: flags & 4 != 0,
        connection: flags & 8 != 0,
    };
    let mut message = Message { bytes: vec![0; HEADER_LENGTH], ..Message::default() };
    put(&head, &fields, &left, &mut message);

    let mut expected: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for field in &fields {
        let (name, value) = (field.name.of(&head), field.value.of(&head));
        let mut key = Vec::new();
        put_header_key(name, &mut key);
        let is_left = field.known == Known::Host
            || (left.coding && field.known == Known::TransferEncoding)
            || (left.upgrade && [&b"HTTP_UPGRADE"[..], b"HTTP_HTTP2_SETTINGS"].contains(&&*key))
            || (left.connection && [&b"HTTP_CONNECTION"[..], b"HTTP_KEEP_ALIVE"].contains(&&*key))
            || (flags & 1 != 0 && key == b"HTTP_A");
        if is_left {
            continue;
        }
        match expected.iter_mut().find(|(known, _)| *known == key) {
            Some((_, joined)) => {
                joined.extend_from_slice(if key == b"HTTP_COOKIE" { b"; " } else { b", " });
                joined.extend_from_slice(value);
            }
            None => expected.push((key, value.to_vec())),
        }
    }
    let size = message.block_size(&head);
    let largest = expected.iter().map(|(_, value)| value.len()).max();
    assert_eq!(size.variables, expected.len());
    assert_eq!(size.largest.map(|(_, length)| length), largest);
    assert_eq!(
        message.block_length(),
        expected.iter().map(|(key, value)| 4 + key.len() + value.len()).sum::<usize>()
    );
    assert_eq!(size.bytes, message.block_length());
    let fits = |(key, value): &(Vec<u8>, Vec<u8>)| key.len().max(value.len()) <= LENGTH_MAX;
    assert_eq!(message.oversized.is_none(), expected.iter().all(fits));
    if message.oversized.is_none() {
        let packet =
            message.slices(&head).iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
        let pairs = decode_block(&packet[HEADER_LENGTH..]).expect("the block decodes");
        let pairs: Vec<_> =
            pairs.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(pairs, expected);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_of_every_length() {
        for length in [0, 1, 1023, 1024, 5000, 65533, 65534, 65535, 70_000] {
            let value = "v".repeat(length);
            fuzz_client_headers(format!("\0A:1\nLong:{value}\nB:2\nlong:x\nC:{value}").as_bytes());
            fuzz_client_headers(format!("\0A:{value}\nB:{value}\nC:{value}\nD:{value}").as_bytes());
        }
    }

    #[test]
    fn names_of_every_length() {
        for length in [1, 1000, 65529, 65530, 65531, 70_000] {
            fuzz_client_headers(format!("\0A:1\n{}:2\nB:3", "n".repeat(length)).as_bytes());
        }
    }

    #[test]
    fn what_is_left_out() {
        for flags in 0..8 {
            let mut data = vec![flags];
            data.extend_from_slice(
                b"Host:h\nA:1\nTransfer-Encoding:chunked\nupgrade:u\nHTTP2-Settings:s\nUp:x\na:2\nB:3",
            );
            fuzz_client_headers(&data);
        }
    }

    proptest! {
        #[test]
        fn any_headers(data in vec(any::<u8>(), 0..300)) {
            fuzz_client_headers(&data);
        }

        #[test]
        fn headers_that_come_again(
            flags in any::<u8>(),
            lines in vec(("[aAbB_-]{1,3}|Cookie|COOKIE|Host|Upgrade|Transfer-Encoding", "[a-z]{0,3}"), 0..60),
        ) {
            let lines: Vec<String> =
                lines.iter().map(|(name, value)| format!("{name}:{value}")).collect();
            fuzz_client_headers(&[&[flags], lines.join("\n").as_bytes()].concat());
        }
    }
}
