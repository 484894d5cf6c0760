//! The headers module: `expires`, `add_header` and `add_trailer`: what the configuration itself
//! says in a response's head and behind its body (http-core, section 9; edge modules, section 7).

mod expires;
pub mod lines;

use std::borrow::Cow;
use std::rc::Rc;

use crate::clock;
use crate::config::diagnostic::{Fault, Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, Setting, inherit};
use crate::config::value::Args;
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http::value;
use crate::http::variable::Template;
use crate::http1::{chunked, date, encode};
use crate::local_time;
use crate::modules::Build;
pub use expires::{Expires, fuzz_expires};
use expires::{Fixed, Kind, Moment};

#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub expires: Setting<Expires>,
    pub add_header: List<AddLine>,
    pub add_header_inherit: Setting<Inherit>,
    pub add_trailer: List<AddLine>,
    pub add_trailer_inherit: Setting<Inherit>,
    /// Whether any of it asks for something: worked out once the level is complete, so that a
    /// response without such lines looks at one flag.
    pub is_used: bool,
}

/// `add_header NAME VALUE [always];` and `add_trailer NAME VALUE [always];`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddLine {
    pub name: Box<str>,
    pub value: Template,
    /// Without it: only on 200 201 204 206 301 302 303 304 307 308.
    pub always: bool,
}

/// What a level takes from the list of the level around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherit {
    /// All of it, when it has no line of its own.
    On,
    Off,
    /// All of it, behind its own lines.
    Merge,
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: expires, add_header_inherit, add_trailer_inherit);
        inherit_list(&mut self.add_header, &outer.add_header, *self.add_header_inherit);
        inherit_list(&mut self.add_trailer, &outer.add_trailer, *self.add_trailer_inherit);
        self.is_used = !matches!(*self.expires, Expires::Off)
            || !self.add_header.is_empty()
            || !self.add_trailer.is_empty();
    }
}

fn inherit_list(own: &mut List<AddLine>, outer: &List<AddLine>, mode: Inherit) {
    match mode {
        Inherit::On => own.inherit(outer),
        Inherit::Off => {}
        Inherit::Merge => {
            for line in outer.iter() {
                own.push(line.clone());
            }
        }
    }
}

const ONE: Count = Count::Exactly(1);
pub const ETAG: &str = "ETag";
pub const LAST_MODIFIED: &str = "Last-Modified";
const INHERIT: &str = "on | off | merge";

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("add_header", Contexts::LEVELS, Count::Between(2, 3))
        .syntax("name value [always]")
        .doc("A line to add to responses; without `always` only to those that are no error.")
        .set(|b, args| {
            let line = add_line(b, args)?;
            b.level().headers.add_header.add(line)
        }),
    Directive::new("add_header_inherit", Contexts::LEVELS, ONE)
        .syntax(INHERIT)
        .default("on")
        .doc(
            "Whether the `add_header` lines of the level around this one hold here: only when there \
             are no own ones, never, or behind them.",
        )
        .set(|b, args| args.fill(&mut b.level().headers.add_header_inherit, inherit_mode)),
    Directive::new("add_trailer", Contexts::LEVELS, Count::Between(2, 3))
        .syntax("name value [always]")
        .doc(
            "A line to add behind the body of responses; they become chunked. Without `always` only \
             for those that are no error.",
        )
        .set(|b, args| {
            let line = add_line(b, args)?;
            b.level().headers.add_trailer.add(line)
        }),
    Directive::new("add_trailer_inherit", Contexts::LEVELS, ONE)
        .syntax(INHERIT)
        .default("on")
        .doc("The same for `add_trailer` lines.")
        .set(|b, args| args.fill(&mut b.level().headers.add_trailer_inherit, inherit_mode)),
    Directive::new("expires", Contexts::LEVELS, Count::Between(1, 2))
        .syntax("[modified] time | epoch | max | off")
        .default("off")
        .doc("`Expires` and `Cache-Control` of responses that are no error.")
        .set(|b, args| {
            let expires = expires_value(b, args);
            args.fill(&mut b.level().headers.expires, |_| expires)
        }),
];

fn add_line(b: &mut Build, args: Args<'_>) -> Outcome<AddLine> {
    let always = match args.all().get(2).map(String::as_str) {
        None => false,
        Some("always") => true,
        Some(other) => return fault!("invalid parameter \"{other}\""),
    };
    let value = b.http.names.template(args.at(1))?;
    Ok(AddLine { name: args.at(0).into(), value, always })
}

fn inherit_mode(args: Args<'_>) -> Outcome<Inherit> {
    args.choice(&[("on", Inherit::On), ("off", Inherit::Off), ("merge", Inherit::Merge)])
}

fn expires_value(b: &mut Build, args: Args<'_>) -> Outcome<Expires> {
    let (is_modified, text) = match args.all() {
        [text] => (false, text),
        [word, text] if word == "modified" => (true, text),
        _ => return Err(args.invalid_value()),
    };
    let template = b.http.names.template(text)?;
    if template.has_variables() {
        return Ok(Expires::Computed { value: template, is_modified });
    }
    Expires::parse(text.as_bytes(), is_modified)
        .map_err(|error| Fault::new(format!("\"expires\" directive {error}")))
}

/// The statuses that lines without `always` are for.
fn is_plain_success(status: u16) -> bool {
    matches!(status, 200 | 201 | 204 | 206 | 301 | 302 | 303 | 304 | 307 | 308)
}

/// Whether a response of this status is to have trailers: it is chunked then.
pub fn asks_for_trailers(settings: &Settings, status: u16) -> bool {
    settings.is_used
        && settings
            .add_trailer
            .iter()
            .any(|line| line.value.as_literal() != Some(b"") && line.is_for(status))
}

impl AddLine {
    fn is_for(&self, status: u16) -> bool {
        self.always || is_plain_success(status)
    }

    fn is_validator(&self) -> bool {
        [ETAG, LAST_MODIFIED].iter().any(|name| self.name.eq_ignore_ascii_case(name))
    }
}

/// Adds to the head in `r.response.head` what the configuration adds.
pub fn put(c: &Connection, r: &mut Request, settings: &Settings) {
    if is_plain_success(r.response.status) {
        put_expires(c, r, &settings.expires);
    }
    let status = r.response.status;
    for line in settings.add_header.iter().filter(|line| line.is_for(status)) {
        put_line(c, r, line);
    }
}

/// The same for a 200, but without the lines that an error would get as well.
pub fn put_but_always(c: &Connection, r: &mut Request) {
    let generation = Rc::clone(&r.generation);
    let settings = &generation.http().location(r.location).settings.headers;
    if !settings.is_used {
        return;
    }
    put_expires(c, r, &settings.expires);
    for line in settings.add_header.iter().filter(|line| !line.always) {
        put_line(c, r, line);
    }
}

fn put_line(c: &Connection, r: &mut Request, line: &AddLine) {
    // The value may look at the head so far: it is built beside it.
    let mut value = value::expanded(&line.value, c, r);
    encode::clean_value(&mut value);
    let name = line.name.as_bytes();
    let (head, list_at) = (&mut r.response.head, r.response.list_at);
    if line.is_validator() {
        // Not a second one, but this one in its place.
        let removed = lines::remove_before(head, list_at, name);
        r.response.list_at = list_at.saturating_sub(removed);
        lines::set(head, r.response.list_at, name, &value);
    } else if !value.is_empty() {
        encode::header(name, &value, head);
    }
}

/// What is added in place of a line that a 200 has by itself, empty for none.
pub fn added(c: &Connection, r: &Request, name: &str) -> Option<Vec<u8>> {
    let lines = &c.settings(r).headers.add_header;
    let line = lines.iter().rfind(|line| line.name.eq_ignore_ascii_case(name))?;
    let mut value = value::expanded(&line.value, c, r);
    encode::clean_value(&mut value);
    Some(value)
}

fn put_expires(c: &Connection, r: &mut Request, expires: &Expires) {
    let computed;
    let (expires, is_computed) = match expires {
        Expires::Computed { value, is_modified } => {
            let text = value::expanded(value, c, r);
            // A value that says nothing asks for nothing.
            let Ok(expires) = Expires::parse(&text, *is_modified) else { return };
            computed = expires;
            (&computed, true)
        }
        expires => (expires, false),
    };
    let now = clock::seconds();
    let head = &mut r.response.head;
    let moment = Moment {
        now,
        last_modified: lines::value(head, 0, b"last-modified").and_then(date::parse),
        next_daily: match expires {
            Expires::At { kind: Kind::Daily, seconds } => local_time::next_daily(now, *seconds),
            _ => now,
        },
        is_computed,
    };
    let Some(Fixed { date, cache_control }) = expires.at(moment) else { return };
    let at = r.response.list_at;
    lines::replace(head, at, b"Expires", date.as_bytes());
    lines::replace(head, at, b"Cache-Control", cache_control.as_bytes());
}

/// What ends a chunked body: the last chunk, the trailers, and the empty line. The trailers that
/// came from an upstream are in `r.response.trailers`; those of the configuration are made here, at
/// the end of the body.
pub fn end_of_chunked(c: &Connection, r: &mut Request) -> Cow<'static, [u8]> {
    if !r.response.has_trailers {
        return Cow::Borrowed(chunked::LAST_CHUNK);
    }
    let generation = Rc::clone(&r.generation);
    let settings = &generation.http().location(r.location).settings.headers;
    for line in settings.add_trailer.iter().filter(|line| line.is_for(r.response.status)) {
        let mut value = value::expanded(&line.value, c, r);
        encode::clean_value(&mut value);
        if !value.is_empty() {
            encode::header(line.name.as_bytes(), &value, &mut r.response.trailers);
        }
    }
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "a length in memory, isize::MAX at most, and five"
    )]
    let mut end = Vec::with_capacity(r.response.trailers.len() + chunked::LAST_CHUNK.len());
    end.extend_from_slice(b"0\r\n");
    end.extend_from_slice(&r.response.trailers);
    end.extend_from_slice(b"\r\n");
    Cow::Owned(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(mode: Option<Inherit>, names: &[&str]) -> Settings {
        let mut settings = Settings::default();
        if let Some(mode) = mode {
            settings.add_header_inherit.set(mode);
        }
        for name in names {
            let value = Template::literal(b"v");
            settings.add_header.push(AddLine { name: (*name).into(), value, always: false });
        }
        settings
    }

    fn inherited(mode: Option<Inherit>, names: &[&str], outer: &Settings) -> Settings {
        let mut inner = level(mode, names);
        inner.inherit(outer);
        inner
    }

    fn names(settings: &Settings) -> Vec<&str> {
        settings.add_header.iter().map(|line| &*line.name).collect()
    }

    #[test]
    fn three_ways_to_inherit() {
        let mut defaults = level(Some(Inherit::On), &[]);
        defaults.expires.set(Expires::Off);
        defaults.add_trailer_inherit.set(Inherit::On);
        let outer = inherited(None, &["a", "b"], &defaults);
        assert_eq!(names(&inherited(None, &[], &outer)), ["a", "b"]);
        assert_eq!(names(&inherited(None, &["c"], &outer)), ["c"]);
        assert_eq!(names(&inherited(Some(Inherit::Merge), &["c"], &outer)), ["c", "a", "b"]);
        assert_eq!(names(&inherited(Some(Inherit::Merge), &[], &outer)), ["a", "b"]);
        let off = inherited(Some(Inherit::Off), &[], &outer);
        assert!(names(&off).is_empty() && !off.is_used);

        // The mode itself is inherited, and what a level has is what its inner levels get.
        let merging = inherited(Some(Inherit::Merge), &["c"], &outer);
        assert_eq!(names(&inherited(None, &["d"], &merging)), ["d", "c", "a", "b"]);
        assert_eq!(names(&inherited(Some(Inherit::On), &[], &off)), [] as [&str; 0]);
    }
}
