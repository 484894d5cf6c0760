//! A request while it is being answered: what came in, what it has become through redirects, and
//! what has been sent. One value a connection, reused from request to request.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::rc::Rc;

use smallvec::SmallVec;

use super::body::RequestBody;
use super::connection::{ClientAddress, Connection};
use super::modules::headers::lines;
use super::modules::realip::Found;
use super::server::{AddressId, LocationId, ServerId};
use super::slots::Slots;
use super::upstream::Attempt;
use super::upstream::protocol::{Message, SetOutFor};
use super::upstream::rest::Unsent;
use super::upstream::window::Window;
use super::variable::Captures;
use crate::clock;
use crate::error_log::Level;
use crate::http1::request::{Method, RequestHead, Version};
use crate::http1::response::ResponseHead;
use crate::http1::trailer::Trailers;
use crate::http1::{ConnectionOption, Span};
use crate::io::Buffer;
use crate::shard::Generation;

/// Changes of the URI (rewrites, internal redirects) before a request is taken to be in a cycle.
pub const URI_CHANGES_MAX: u8 = 10;

#[derive(Debug)]
pub struct Request {
    /// The configuration that the request was accepted under.
    pub generation: Rc<Generation>,
    pub address: AddressId,
    pub server: ServerId,
    pub location: LocationId,

    /// The head as received, then whatever was received behind it and is not yet consumed.
    pub buffer: Buffer,
    pub head: RequestHead,
    /// Bytes of the head in `buffer`. Zero until it is complete.
    pub head_len: usize,
    /// The head was refused: not even the target is known, if it was for the request line.
    pub refused: Option<RefusedPart>,
    /// The current method: GET after an error page's redirect.
    pub method: Method,
    /// Current normalised path, and args without `?`.
    pub uri: Vec<u8>,
    pub args: Vec<u8>,
    /// A value also when they are empty: not what the client sent, or ahead of a fragment.
    args_were_set: bool,
    /// Whether `uri` and `args` still are what the client asked for.
    pub uri_is_original: bool,
    /// The URI was changed by `rewrite … break`, or by a `rewrite` with a `break` behind it: what stands
    /// in for the location's name does not fit it.
    pub rewritten_in_place: bool,
    /// The URI is what `try_files` has found behind the `alias` of a regex location.
    pub uri_follows_alias: bool,
    /// Whether the client's path held `%XX`: then, or after an internal redirect, the path is escaped
    /// again on its way to an upstream.
    pub escape: bool,
    /// Lower case, without port and trailing dot; empty when the client named none.
    pub host: Vec<u8>,
    /// Digits of the port that the client named, in `host_port`.
    pub host_port: Option<SmallVec<[u8; 8]>>,
    /// Reached by a rewrite or an internal redirect: `internal` locations are open.
    pub internal: bool,
    pub uri_changes: u8,
    /// An error page is being made whose own errors get the built-in pages: the location of the error
    /// that it is for does without `recursive_error_pages`.
    pub only_built_in_pages: bool,

    /// Of the last match. In a cell like what follows, because a variable that is only looked at may
    /// have to be computed by a match.
    pub captures: RefCell<Captures>,
    /// A match was given up on the way to a value: what goes by that value cannot be decided.
    gave_up: Cell<bool>,
    /// Values of variables made by `set` and named groups, and of computed ones.
    pub slots: Slots,
    /// The client's address that a trusted proxy has named, when `is_real_client_set`.
    real_client: ClientAddress,
    is_real_client_set: bool,
    /// The first 64 of the slots, by bit, whose use before their `set` was told.
    pub told_uninitialized: std::cell::Cell<u64>,
    /// `$request_id`, made on first use.
    pub id: std::cell::OnceCell<[u8; 32]>,

    pub body: RequestBody,
    pub response: Response,
    /// Every try of every upstream exchange so far, for the `$upstream_*` variables.
    pub attempts: Vec<Attempt>,
    /// How many exchanges have begun.
    exchanges: u32,
    pub set_out_for: SetOutFor,
    /// What is sent to the upstream.
    pub message: Message,
    /// The head of the last upstream response, and the bytes it refers to (`$upstream_http_*`).
    pub upstream_head: ResponseHead,
    pub upstream_bytes: Buffer,
    /// Bytes of that head; what is behind them is body.
    pub upstream_head_len: usize,
    /// What came behind its body, where that is passed on (`$upstream_trailer_*`).
    pub upstream_trailers: Option<Box<Trailers>>,

    /// Time since the epoch at the first byte, for `$request_time`.
    pub started: std::time::Duration,
    pub pipelined: bool,
    /// Whether the connection goes on after this request.
    pub keepalive: bool,
    pub logged: bool,
}

/// What of a head could not be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedPart {
    RequestLine,
    /// The host in a request line that is known otherwise.
    TargetHost,
    Headers,
}

/// What the client has been or will be told.
#[derive(Debug, Default)]
pub struct Response {
    /// What the client has still to take when all else is done.
    pub unsent: Option<Box<Unsent>>,
    /// Zero until decided.
    pub status: u16,
    /// The status that an error page's redirect keeps.
    pub status_override: Option<u16>,
    /// The head as sent (for `$sent_http_*`), built here.
    pub head: Vec<u8>,
    /// Where in `head` the lines with a fixed place end.
    pub list_at: usize,
    /// Lines behind the last chunk follow, and these are known of them so far (for
    /// `$sent_trailer_*`).
    pub has_trailers: bool,
    pub trailers: Vec<u8>,
    pub head_sent: bool,
    /// Sent to the client so far: head and framing included, and of these how much is head.
    pub bytes_sent: u64,
    pub head_bytes: u64,
    pub chunked: bool,
    /// No body follows the head whatever it says: HEAD, 204, 304.
    pub is_bodiless: bool,
    /// The response is complete on the wire.
    pub complete: bool,
    /// Bytes a second, by `set $limit_rate` or X-Accel-Limit-Rate in place of `limit_rate`; 0 is no
    /// limit.
    pub limit_rate: Option<u64>,
    /// How fast the response under way goes, when that is limited.
    pub pace: Option<super::pace::Pace>,
    /// Kept from a `return 30x` for the response to come.
    pub location: Option<Vec<u8>>,
    /// The line of `sticky cookie` for the upstream server that was chosen last.
    pub set_cookie: Vec<u8>,
    /// Kept from an upstream's response that is not passed on, for the one that is.
    pub kept: Kept,
    /// Of the upstream's body only this is sent.
    pub window: Option<Window>,
}

/// Headers of a response that was given up.
#[derive(Debug, Default)]
pub struct Kept {
    pub content_type: Option<Box<[u8]>>,
    /// Whole lines.
    pub lines: Vec<u8>,
}

impl Kept {
    /// What goes with a built-in page: it has a type of its own, and no ranges can be had of it.
    pub fn keep_for_page(&mut self) {
        self.content_type = None;
        lines::remove_before(&mut self.lines, usize::MAX, b"accept-ranges");
    }
}

/// Requests that nobody has at the moment: a connection has one only from the first byte of a head
/// on, and their buffers are used again and again.
#[derive(Default)]
pub struct Requests(
    // Boxed, because a connection is to have no more than a pointer of it.
    #[allow(clippy::vec_box)] RefCell<Vec<Box<Request>>>,
);

impl Requests {
    /// More are not kept.
    const KEPT_MAX: usize = 128;
    /// Nor is one with more than so many bytes of buffers.
    const HELD_MAX: usize = 32 << 10;

    pub fn take(&self, generation: Rc<Generation>, address: AddressId) -> Box<Request> {
        match self.0.borrow_mut().pop() {
            Some(mut r) => {
                r.bind(generation, address);
                r
            }
            None => Box::new(Request::new(generation, address)),
        }
    }

    /// Keeps one that has been reset. No configuration but the `current` one is held by it.
    pub fn give(&self, r: Box<Request>, current: &Rc<Generation>) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < Self::KEPT_MAX
            && r.held() <= Self::HELD_MAX
            && Rc::ptr_eq(&r.generation, current)
        {
            kept.push(r);
        }
    }

    /// Lets go of all, and of the configurations that they hold.
    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

impl Request {
    /// Bytes of buffers that stay with it.
    #[expect(clippy::arithmetic_side_effects, reason = "all of it is allocated")]
    fn held(&self) -> usize {
        self.uri.capacity()
            + self.args.capacity()
            + self.host.capacity()
            + self.response.head.capacity()
            + self.response.trailers.capacity()
            + self.message.capacity()
    }

    /// What has been received behind the head.
    #[expect(
        clippy::indexing_slicing,
        reason = "`head_len` counts bytes of `buffer`, and is 0 before there is a head"
    )]
    pub fn behind_head(&self) -> &[u8] {
        &self.buffer.as_slice()[self.head_len..]
    }

    /// What the server has sent behind its head.
    #[expect(
        clippy::indexing_slicing,
        reason = "`upstream_head_len` counts bytes of `upstream_bytes`, set when the head was whole"
    )]
    pub fn behind_upstream_head(&self) -> &[u8] {
        &self.upstream_bytes.as_slice()[self.upstream_head_len..]
    }

    pub fn new(generation: Rc<Generation>, address: AddressId) -> Self {
        let server = generation.http().address(address).default_server;
        let location = generation.http().server(server).level;
        Request {
            generation,
            address,
            server,
            location,
            buffer: Buffer::empty(),
            head: RequestHead::default(),
            head_len: 0,
            refused: None,
            method: Method::Other,
            uri: Vec::new(),
            args: Vec::new(),
            args_were_set: false,
            uri_is_original: true,
            rewritten_in_place: false,
            uri_follows_alias: false,
            escape: false,
            host: Vec::new(),
            host_port: None,
            internal: false,
            uri_changes: 0,
            only_built_in_pages: false,
            captures: RefCell::default(),
            gave_up: Cell::new(false),
            slots: Slots::default(),
            real_client: ClientAddress::default(),
            is_real_client_set: false,
            told_uninitialized: std::cell::Cell::new(0),
            id: std::cell::OnceCell::new(),
            body: RequestBody::default(),
            response: Response::default(),
            attempts: Vec::new(),
            exchanges: 0,
            set_out_for: SetOutFor::Nobody,
            message: Message::default(),
            upstream_head: ResponseHead::default(),
            upstream_bytes: Buffer::empty(),
            upstream_head_len: 0,
            upstream_trailers: None,
            started: std::time::Duration::ZERO,
            pipelined: false,
            keepalive: false,
            logged: false,
        }
    }

    /// Makes the value ready for the connection's next request; what was received ahead stays.
    pub fn reset(&mut self, generation: Rc<Generation>, address: AddressId) {
        self.clear();
        self.bind(generation, address);
    }

    /// What is to come, comes to this address and under this configuration.
    fn bind(&mut self, generation: Rc<Generation>, address: AddressId) {
        self.server = generation.http().address(address).default_server;
        self.location = generation.http().server(self.server).level;
        self.generation = generation;
        self.address = address;
    }

    fn clear(&mut self) {
        self.buffer.consume(self.head_len);
        if self.buffer.is_empty() {
            self.buffer = Buffer::empty();
        } else {
            self.buffer.compact();
        }
        self.head.clear();
        self.head_len = 0;
        self.refused = None;
        self.method = Method::Other;
        self.uri.clear();
        self.args.clear();
        self.args_were_set = false;
        self.uri_is_original = true;
        self.rewritten_in_place = false;
        self.uri_follows_alias = false;
        self.escape = false;
        self.host.clear();
        self.host_port = None;
        self.internal = false;
        self.uri_changes = 0;
        self.only_built_in_pages = false;
        self.captures.get_mut().clear();
        self.gave_up.set(false);
        self.slots.clear();
        if std::mem::take(&mut self.is_real_client_set) {
            self.real_client = ClientAddress::default();
        }
        self.told_uninitialized.set(0);
        self.id = std::cell::OnceCell::new();
        self.body.reset();
        self.response.reset();
        self.attempts.clear();
        self.exchanges = 0;
        self.set_out_for = SetOutFor::Nobody;
        self.message.clear();
        self.upstream_head.clear();
        self.upstream_bytes = Buffer::empty();
        self.upstream_head_len = 0;
        self.upstream_trailers = None;
        self.pipelined = false;
        self.started = std::time::Duration::ZERO;
        self.keepalive = false;
        self.logged = false;
    }

    /// The args, as `$args` shows them: those that the configuration or an upstream has set, or that
    /// come before a fragment, are known though they be empty; those that the client did not send are not.
    pub fn known_args(&self) -> Option<&Vec<u8>> {
        (self.args_were_set || !self.args.is_empty()).then_some(&self.args)
    }

    /// Other args from now on, or none.
    pub fn set_args(&mut self, args: Option<Vec<u8>>) {
        self.args_were_set = args.is_some();
        self.args = args.unwrap_or_default();
    }

    /// The bytes that the head's spans refer to, with whatever follows.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_slice()
    }

    /// A part of the head.
    pub fn text(&self, span: Span) -> &[u8] {
        span.of(self.buffer.as_slice())
    }

    /// `$request_uri`: the target as sent, from its path on. False: no request line was accepted.
    pub fn put_request_uri(&self, out: &mut Vec<u8>) -> bool {
        if self.refused == Some(RefusedPart::RequestLine) || !self.head.is_line_read() {
            return false;
        }
        let path = self.text(self.head.path);
        if path.is_empty() {
            // An absolute-form target without a path.
            out.push(b'/');
        }
        out.extend_from_slice(path);
        true
    }

    /// An exchange is about to look for a server: the tries of those before it are told apart from its.
    pub fn begin_exchange(&mut self) {
        if self.exchanges > 0 {
            self.attempts.push(Attempt::boundary());
        }
        self.exchanges = self.exchanges.saturating_add(1);
    }

    pub fn is_head(&self) -> bool {
        self.method == Method::Head
    }

    pub fn version(&self) -> Version {
        self.head.version
    }

    /// What the client asked for the connection, before any setting is looked at.
    pub fn wants_keepalive(&self) -> bool {
        match self.head.connection {
            ConnectionOption::Close => false,
            ConnectionOption::KeepAlive => true,
            ConnectionOption::None => self.head.version >= Version::Http11,
        }
    }

    /// Seconds and milliseconds since the first byte.
    pub fn elapsed(&self) -> std::time::Duration {
        clock::steady().saturating_sub(self.started)
    }

    pub fn set_slot(&self, slot: super::variable::VariableSlot, value: &[u8]) {
        self.slots.set(slot, value);
    }

    /// After a successful match: fills the slots of the regex's named groups.
    pub fn set_named_captures(&self, regex: &super::variable::Regex) {
        for &(group, slot) in &regex.named {
            self.set_slot(slot, self.captures.borrow().group(group).unwrap_or_default());
        }
    }

    /// Notes that a match was given up whose outcome a value depends on, and tells of it.
    pub fn give_up(&self, c: &Connection, regex: &super::variable::Regex) {
        let pattern = &regex.pattern;
        c.log(self, Level::Error, format_args!("matching \"{pattern}\" took too many steps"));
        self.gave_up.set(true);
    }

    /// Notes the same of a value that is used once more.
    pub fn be_undecided(&self) {
        self.gave_up.set(true);
    }

    /// Whether what has just been decided went by such a value: what nobody knows may have been a
    /// refusal, so the answer is 500. It is asked once.
    pub fn has_given_up(&self) -> bool {
        self.gave_up.replace(false)
    }

    /// The client's address, when a proxy has named another one than the connection's.
    pub fn real_client(&self) -> Option<&ClientAddress> {
        self.is_real_client_set.then_some(&self.real_client)
    }

    /// Until the end of the request.
    pub fn set_real_client(&mut self, found: Found) {
        let client = &mut self.real_client;
        client.address.clear();
        let _ = write!(client.address, "{}", found.ip);
        client.ip = Some(found.ip);
        client.port = found.port;
        self.is_real_client_set = true;
    }
}

impl Response {
    pub fn reset(&mut self) {
        self.unsent = None;
        self.status = 0;
        self.status_override = None;
        self.head.clear();
        self.list_at = 0;
        self.has_trailers = false;
        self.trailers.clear();
        self.head_sent = false;
        self.bytes_sent = 0;
        self.head_bytes = 0;
        self.chunked = false;
        self.is_bodiless = false;
        self.complete = false;
        self.limit_rate = None;
        self.pace = None;
        self.location = None;
        self.set_cookie.clear();
        self.kept.content_type = None;
        self.kept.lines.clear();
        self.window = None;
    }

    /// `$body_bytes_sent`
    pub fn body_bytes(&self) -> u64 {
        self.bytes_sent.saturating_sub(self.head_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::http::slots::Held;
    use crate::http::variable::VariableSlot;

    fn generation() -> Rc<Generation> {
        use crate::modules::{LoadOptions, load_from};
        let options = LoadOptions {
            file: "/c".into(),
            prefix: "/".into(),
            globals: None,
            error_log: Some("/dev/null".into()),
        };
        let text = "events { } http { access_log off; server { listen 80; } }";
        let files = crate::config::tree::memory::Memory::of(&[("/c", text)]);
        let config = Arc::new(load_from(&options, &files).unwrap().config);
        let logs = crate::http::modules::access_log::LogWriters::default();
        Rc::new(Generation::new(config, &crate::error_log::Files::default(), &logs).unwrap())
    }

    /// Changes every field that is a request's own. One that is new does not compile before it has
    /// its line here.
    fn fill(r: &mut Request) {
        let Request {
            generation: _,
            address: _,
            server: _,
            location: _,
            buffer,
            head,
            head_len,
            refused,
            method,
            uri,
            args,
            args_were_set,
            uri_is_original,
            rewritten_in_place,
            uri_follows_alias,
            escape,
            host,
            host_port,
            internal,
            uri_changes,
            only_built_in_pages,
            captures,
            gave_up,
            slots,
            real_client: _,
            is_real_client_set: _,
            told_uninitialized,
            id,
            body,
            response,
            attempts,
            exchanges,
            set_out_for,
            message: _,
            upstream_head,
            upstream_bytes,
            upstream_head_len,
            upstream_trailers,
            started,
            pipelined,
            keepalive,
            logged,
        } = &mut *r;
        buffer.extend(b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        let rules = crate::http1::request::Limits {
            first: 1024,
            number: 4,
            size: 8192,
            count_max: 100,
            ignore_invalid_headers: true,
            underscores_in_headers: false,
        };
        crate::http1::request::parse(buffer.as_slice(), &rules.into(), head).unwrap();
        *head_len = buffer.len();
        *refused = Some(RefusedPart::Headers);
        *method = Method::Get;
        uri.push(b'/');
        args.push(b'a');
        *args_were_set = true;
        *uri_is_original = false;
        *rewritten_in_place = true;
        *uri_follows_alias = true;
        *escape = true;
        host.push(b'a');
        *host_port = Some(SmallVec::from_slice(b"1"));
        *internal = true;
        *uri_changes = 1;
        *only_built_in_pages = true;
        captures.get_mut().subject.push(b'a');
        captures.get_mut().groups.push(Some((0, 1)));
        gave_up.set(true);
        slots.set(VariableSlot(0), b"a");
        told_uninitialized.set(1);
        id.set([b'a'; 32]).unwrap();
        body.was_streamed = true;
        body.is_abandoned = true;
        body.is_held = true;
        body.received = 1;
        body.decoded = 1;
        body.memory.extend(b"a");
        *response = Response {
            unsent: Some(Box::new(Unsent {
                rest: crate::http::upstream::rest::Rest::new(1, Rc::default()),
                end: crate::http::upstream::relay::End::Complete,
            })),
            status: 200,
            status_override: Some(404),
            head: b"a".to_vec(),
            list_at: 1,
            has_trailers: true,
            trailers: b"a".to_vec(),
            head_sent: true,
            bytes_sent: 1,
            head_bytes: 1,
            chunked: true,
            is_bodiless: true,
            complete: true,
            limit_rate: Some(1),
            pace: None,
            location: Some(b"a".to_vec()),
            set_cookie: b"a".to_vec(),
            kept: Kept { content_type: Some(b"a"[..].into()), lines: b"a".to_vec() },
            window: Some(Window::new(0..1, 2)),
        };
        attempts.push(Attempt::boundary());
        *exchanges = 1;
        *set_out_for = SetOutFor::Computed(Rc::default());
        upstream_head.code = 200;
        upstream_head.content_length = Some(1);
        upstream_bytes.extend(b"a");
        *upstream_head_len = 1;
        *upstream_trailers = Some(Box::default());
        *started = std::time::Duration::from_secs(1);
        *pipelined = true;
        *keepalive = true;
        *logged = true;
        r.set_real_client(Found { ip: [1, 2, 3, 4].into(), port: Some(5) });
    }

    #[test]
    fn nothing_of_a_request_comes_to_the_next_one() {
        let generation = generation();
        let fresh = Request::new(Rc::clone(&generation), AddressId(0));
        let mut r = Request::new(Rc::clone(&generation), AddressId(0));
        fill(&mut r);
        assert_eq!(r.slots.held(VariableSlot(0)), Held::Bytes);
        r.reset(Rc::clone(&generation), AddressId(0));
        assert_eq!(r.slots.held(VariableSlot(0)), Held::Nothing);
        // Of these the memory stays, which shows.
        r.slots = Slots::default();
        assert_eq!(format!("{r:#?}"), format!("{fresh:#?}"));
    }
}
