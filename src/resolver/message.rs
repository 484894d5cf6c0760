//! One question to a name server, and what its answer says (RFC 1035, RFC 2782). Pure: the codec is
//! hickory-proto's, what counts as an answer is decided here.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

use super::Failure;

/// Aliases followed for one name, in one answer or over several.
pub const ALIASES_MAX: usize = 50;

/// What is asked for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Where a service is (RFC 2782).
    Srv,
}

impl Kind {
    fn record_type(self) -> RecordType {
        match self {
            Kind::A => RecordType::A,
            Kind::Aaaa => RecordType::AAAA,
            Kind::Srv => RecordType::SRV,
        }
    }
}

/// An SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The lowest is wanted first.
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    pub target: Name,
}

/// What a datagram, or a message over TCP, is to who asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Not an answer to this question: a late one, a forged one, or no message at all.
    Foreign,
    /// There is more than fits a datagram: to be asked for over TCP.
    Truncated,
    Answer(Result<Records, Failure>),
}

/// What an answer holds for the name that was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Records {
    pub addresses: Vec<IpAddr>,
    pub services: Vec<Service>,
    /// The name is another's alias, and of that other the answer says nothing.
    pub alias: Option<Name>,
    /// Seconds: the shortest of all records that were used; `None`: none was.
    pub ttl: Option<u32>,
}

/// A name as it is asked for and cached: lower case, without a final dot. `None`: none that a
/// server could know (an empty label, one longer than 63 bytes, more than 255 in all).
pub fn name(text: &str) -> Option<Name> {
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    Name::from_labels(text.split('.').map(str::as_bytes)).ok()
}

/// The message that asks; `None` when there is no way to write it.
pub fn question(id: u16, name: &Name, kind: Kind) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind.record_type()));
    message.to_vec().ok()
}

/// Reads what came back to [`question`].
pub fn reply(bytes: &[u8], id: u16, name: &Name, kind: Kind) -> Reply {
    /// In the third byte of a message.
    const RESPONSE: u8 = 0x80;
    const TRUNCATED: u8 = 0x02;
    let Some((&[first, second, flags], _)) = bytes.split_first_chunk() else {
        return Reply::Foreign;
    };
    if u16::from_be_bytes([first, second]) != id || flags & RESPONSE == 0 {
        return Reply::Foreign;
    }
    if flags & TRUNCATED != 0 {
        // It may end in the middle of a record: not to be read.
        return Reply::Truncated;
    }
    let Ok(message) = Message::from_vec(bytes) else { return Reply::Foreign };
    let is_ours = match message.queries.as_slice() {
        [asked] => {
            asked.name() == name
                && asked.query_type() == kind.record_type()
                && asked.query_class() == DNSClass::IN
        }
        // A server that could not read the question does not repeat it.
        [] => message.metadata.response_code == ResponseCode::FormErr,
        _ => false,
    };
    if !is_ours || message.metadata.op_code != OpCode::Query {
        return Reply::Foreign;
    }
    Reply::Answer(match message.metadata.response_code {
        ResponseCode::NoError => Ok(records(&message, name, kind)),
        code => Err(Failure::from_code(code.low())),
    })
}

/// Follows the aliases inside the answer, in whatever order the records stand.
fn records(message: &Message, name: &Name, kind: Kind) -> Records {
    let mut found = Records::default();
    let mut owner = name;
    for _ in 0..=ALIASES_MAX {
        let mut alias = None;
        let of_owner = message
            .answers
            .iter()
            .filter(|record| record.dns_class == DNSClass::IN && record.name == *owner);
        for record in of_owner {
            match (&record.data, kind) {
                (RData::A(a), Kind::A) => found.addresses.push(IpAddr::V4(a.0)),
                (RData::AAAA(aaaa), Kind::Aaaa) => found.addresses.push(IpAddr::V6(aaaa.0)),
                (RData::SRV(srv), Kind::Srv) => found.services.push(Service {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    target: srv.target.to_lowercase(),
                }),
                (RData::CNAME(cname), _) => alias = Some(&cname.0),
                _ => continue,
            }
            found.ttl = Some(found.ttl.map_or(record.ttl, |ttl| ttl.min(record.ttl)));
        }
        match alias {
            Some(next) if found.addresses.is_empty() && found.services.is_empty() => owner = next,
            _ => break,
        }
    }
    if found.addresses.is_empty() && found.services.is_empty() && owner != name {
        found.alias = Some(owner.to_lowercase());
    }
    found
}

/// Any bytes as a reply, with the id they say: reading ends, and in nothing that was not asked for.
pub fn fuzz_reply(data: &[u8]) {
    let Some(name) = name("a.example") else { return };
    let id = data.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    for kind in [Kind::A, Kind::Aaaa, Kind::Srv] {
        assert_eq!(reply(data, id.wrapping_add(1), &name, kind), Reply::Foreign);
        if let Reply::Answer(Ok(records)) = reply(data, id, &name, kind) {
            let is_empty = records.addresses.is_empty() && records.services.is_empty();
            assert!(is_empty || records.ttl.is_some());
            assert!(records.addresses.iter().all(|ip| ip.is_ipv6() == (kind == Kind::Aaaa)));
            assert!(records.services.is_empty() || kind == Kind::Srv);
        }
    }
}

#[cfg(test)]
pub mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, SRV};
    use proptest::prelude::*;

    use super::*;

    fn named(text: &str) -> Name {
        name(text).unwrap()
    }

    fn alias(of: &str) -> RData {
        RData::CNAME(CNAME(named(of)))
    }

    fn a(last: u8) -> RData {
        RData::A(A::new(10, 0, 0, last))
    }

    /// The answer with these records to a question for `asked`.
    pub fn answer(id: u16, asked: &str, kind: Kind, records: &[(&str, u32, RData)]) -> Message {
        let mut message = Message::response(id, OpCode::Query);
        message.add_query(Query::query(named(asked), kind.record_type()));
        for (owner, ttl, data) in records {
            message.add_answer(Record::from_rdata(named(owner), *ttl, data.clone()));
        }
        message
    }

    fn read(message: &Message, asked: &str, kind: Kind) -> Reply {
        reply(&message.to_vec().unwrap(), 7, &named(asked), kind)
    }

    fn addresses(reply: Reply) -> (Vec<String>, Option<u32>, Option<String>) {
        match reply {
            Reply::Answer(Ok(records)) => (
                records.addresses.iter().map(ToString::to_string).collect(),
                records.ttl,
                records.alias.map(|name| name.to_string()),
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_lower_case_and_have_no_empty_labels() {
        assert_eq!(name("A.Example.").unwrap().to_string(), "a.example.");
        let long = "x".repeat(64);
        let many = ["x"; 128].join(".");
        for bad in ["", ".", "a..b", ".a", "a..", &long, &many] {
            assert_eq!(name(bad), None, "{bad}");
        }
        assert!(name("_http._tcp.a").is_some() && name("a b").is_some());
    }

    #[test]
    fn a_question_asks_for_recursion() {
        let bytes = question(0x1234, &named("a.b"), Kind::Srv).unwrap();
        assert_eq!(bytes, b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x01b\0\0\x21\0\x01");
    }

    #[test]
    fn addresses_of_the_name_alone_count_and_the_shortest_life() {
        let records = [("a.b", 60, a(1)), ("A.B", 30, a(2)), ("other", 5, a(3))];
        let read = addresses(read(&answer(7, "a.b", Kind::A, &records), "a.b", Kind::A));
        assert_eq!(read, (vec!["10.0.0.1".into(), "10.0.0.2".into()], Some(30), None));
    }

    #[test]
    fn aliases_are_followed_in_any_order() {
        let records = [("c", 60, a(1)), ("b", 20, alias("c")), ("a", 40, alias("b"))];
        let read = addresses(read(&answer(7, "a", Kind::A, &records), "a", Kind::A));
        assert_eq!(read, (vec!["10.0.0.1".into()], Some(20), None));
    }

    #[test]
    fn an_alias_alone_is_for_the_next_question() {
        let records = [("b", 20, alias("C")), ("a", 40, alias("b"))];
        let read = addresses(read(&answer(7, "a", Kind::A, &records), "a", Kind::A));
        assert_eq!(read, (vec![], Some(20), Some("c.".into())));
    }

    #[test]
    fn a_circle_of_aliases_ends() {
        let records = [("b", 20, alias("a")), ("a", 40, alias("b"))];
        let (found, ..) = addresses(read(&answer(7, "a", Kind::A, &records), "a", Kind::A));
        assert!(found.is_empty());
    }

    #[test]
    fn each_kind_takes_its_own() {
        let six = RData::AAAA(AAAA::new(0, 0, 0, 0, 0, 0, 0, 1));
        let srv = RData::SRV(SRV::new(1, 2, 3, named("T")));
        let all = [("a", 9, a(1)), ("a", 9, six), ("a", 9, srv)];
        let of = |kind| read(&answer(7, "a", kind, &all), "a", kind);
        assert_eq!(addresses(of(Kind::A)).0, ["10.0.0.1"]);
        assert_eq!(addresses(of(Kind::Aaaa)).0, ["::1"]);
        let Reply::Answer(Ok(records)) = of(Kind::Srv) else { panic!() };
        let service = Service { priority: 1, weight: 2, port: 3, target: named("t") };
        assert_eq!(records.services, [service]);
        assert!(records.addresses.is_empty());
    }

    #[test]
    fn codes_are_failures() {
        for (code, text) in [
            (ResponseCode::FormErr, "1: Format error"),
            (ResponseCode::ServFail, "2: Server failure"),
            (ResponseCode::NXDomain, "3: Host not found"),
            (ResponseCode::NotImp, "4: Unimplemented"),
            (ResponseCode::Refused, "5: Operation refused"),
            (ResponseCode::YXDomain, "6: Unknown error"),
        ] {
            let mut message = answer(7, "a", Kind::A, &[]);
            message.metadata.response_code = code;
            let Reply::Answer(Err(failure)) = read(&message, "a", Kind::A) else { panic!() };
            assert_eq!(failure.to_string(), text);
        }
    }

    #[test]
    fn what_was_not_asked_for_is_foreign() {
        let good = answer(7, "a", Kind::A, &[("a", 9, a(1))]);
        assert!(matches!(read(&good, "a", Kind::A), Reply::Answer(_)));
        let mut query = good.clone();
        query.metadata.message_type = MessageType::Query;
        let mut update = good.clone();
        update.metadata.op_code = OpCode::Update;
        let mut none = good.clone();
        none.queries.clear();
        for bad in [
            &answer(8, "a", Kind::A, &[("a", 9, a(1))]),
            &answer(7, "b", Kind::A, &[("a", 9, a(1))]),
            &answer(7, "a", Kind::Aaaa, &[("a", 9, a(1))]),
            &query,
            &update,
            &none,
        ] {
            assert_eq!(read(bad, "a", Kind::A), Reply::Foreign, "{bad:?}");
        }
        let bytes = good.to_vec().unwrap();
        for len in 0..bytes.len() {
            assert_eq!(reply(&bytes[..len], 7, &named("a"), Kind::A), Reply::Foreign, "{len}");
        }
    }

    #[test]
    fn a_truncated_one_is_asked_for_again_wherever_it_was_cut() {
        let mut message = answer(7, "a", Kind::A, &[("a", 9, a(1))]);
        message.metadata.truncation = true;
        let bytes = message.to_vec().unwrap();
        for len in 12..=bytes.len() {
            assert_eq!(reply(&bytes[..len], 7, &named("a"), Kind::A), Reply::Truncated);
        }
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_reply(&data);
        }

        /// Bytes of a good answer with some changed.
        #[test]
        fn broken_answers(changes in prop::collection::vec((0usize..200, any::<u8>()), 1..6)) {
            let records = [("a.example", 9, alias("b.example")), ("b.example", 9, a(1))];
            let mut bytes = answer(7, "a.example", Kind::A, &records).to_vec().unwrap();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            fuzz_reply(&bytes);
        }

        #[test]
        fn any_text_is_a_name_or_is_not(text in ".{0,80}") {
            if let Some(name) = name(&text) {
                prop_assert!(question(1, &name, Kind::A).is_some());
            }
        }
    }
}
