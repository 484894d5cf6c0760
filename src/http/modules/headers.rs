//! The headers module: `add_header`.

use crate::config::diagnostic::{Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, inherit};
use crate::config::value::Args;
use crate::http::variable::Template;
use crate::modules::Build;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub add_header: List<AddHeader>,
}

/// `add_header NAME VALUE [always];`
#[derive(Debug, Clone)]
pub struct AddHeader {
    pub name: Box<str>,
    pub value: Template,
    /// Without it: only on 200 201 204 206 301 302 303 304 307 308.
    pub always: bool,
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: add_header);
    }
}

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("add_header", Contexts::LEVELS, Count::Between(2, 3))
        .syntax("name value [always]")
        .doc("A line to add to responses; without `always` only to those that are no error.")
        .set(add_header),
    Directive::refused("add_header_inherit", "lists are replaced whole"),
    Directive::refused("add_trailer", "responses have no trailers"),
    Directive::refused("add_trailer_inherit", "responses have no trailers"),
    Directive::refused("expires", "use add_header").unless("off"),
];

fn add_header(b: &mut Build, args: Args<'_>) -> Outcome {
    let always = match args.all().get(2).map(String::as_str) {
        None => false,
        Some("always") => true,
        Some(other) => return fault!("invalid parameter \"{other}\""),
    };
    let value = b.http.names.template(args.at(1))?;
    b.level().headers.add_header.add(AddHeader { name: args.at(0).into(), value, always })
}
