//! Variables that are computed when a request first needs them: what `map`, `geo` and
//! `split_clients` have in common.
//!
//! Each of them chooses one of a few texts of the configuration. What it looks up is expanded behind
//! the caller's own output and taken off again, so a lookup needs no memory of its own.

use super::connection::Connection;
use super::modules::geo::Geo;
use super::modules::map::Map;
use super::modules::split_clients::SplitClients;
use super::request::Request;
use super::slots::Held;
use super::value;
use super::variable::{Template, VariableSlot};
use crate::error_log::Level;

/// How the variable of a slot gets its value.
#[derive(Debug)]
pub struct Computed {
    /// Computed at each use, not once a request.
    pub volatile: bool,
    /// What there is to choose from.
    pub texts: Texts,
    pub chooser: Chooser,
}

#[derive(Debug)]
pub enum Chooser {
    Map(Map),
    Geo(Geo),
    SplitClients(SplitClients),
}

/// The texts a variable may have; number 0 is the empty one, for when nothing fits.
#[derive(Debug)]
pub struct Texts(Vec<Template>);

impl Default for Texts {
    fn default() -> Self {
        Texts(vec![Template::default()])
    }
}

impl Texts {
    /// Number of the text for when nothing fits.
    pub const EMPTY: u32 = 0;

    /// Adds a text; its number.
    pub fn add(&mut self, text: Template) -> u32 {
        let number = self.0.len() as u32;
        self.0.push(text);
        number
    }

    pub fn get(&self, number: u32) -> Option<&Template> {
        self.0.get(number as usize)
    }
}

impl Chooser {
    /// The number of the request's text. `out` is as it was when this returns.
    fn choose(&self, c: &Connection, r: &Request, out: &mut Vec<u8>) -> u32 {
        match self {
            Chooser::Map(map) => map.choose(c, r, out),
            Chooser::Geo(geo) => geo.choose(c, r, out),
            Chooser::SplitClients(split) => split.choose(c, r, out),
        }
    }
}

/// Appends the value of a slot's variable, computing it if need be; tells whether there is one.
pub fn append(slot: VariableSlot, c: &Connection, r: &Request, out: &mut Vec<u8>) -> bool {
    let held = r.slots.held(slot);
    if held == Held::Bytes {
        r.slots.put(slot, out);
        return true;
    }
    let Some(computed) = r.generation.http().computed(slot) else {
        return value::uninitialized(slot, c, r);
    };
    if let Held::Text(number) | Held::Undecided(number) = held {
        put_literal(&computed.texts, number, out);
        if let Held::Undecided(_) = held {
            r.be_undecided();
        }
        return true;
    }
    if !r.slots.begin(slot) {
        let names = &r.generation.http().variable_names;
        let name = names.get(usize::from(slot.0)).map_or("", |name| name);
        let text = format_args!("cycle while evaluating variable \"{name}\"");
        c.log(r, Level::Error, text);
        return false;
    }
    // Of this variable alone, then of all before it, too.
    let had_given_up = r.has_given_up();
    let start = out.len();
    let number = computed.chooser.choose(c, r, out);
    let template = computed.texts.get(number).filter(|template| template.has_variables());
    match template {
        Some(template) => value::expand(template, c, r, out),
        None => put_literal(&computed.texts, number, out),
    }
    let gave_up = r.has_given_up();
    r.slots.end(
        slot,
        match template {
            _ if computed.volatile => Held::Nothing,
            // It is not tried again, and every use of it is as undecided.
            _ if gave_up => Held::Undecided(number),
            Some(_) => Held::Nothing,
            None => Held::Text(number),
        },
    );
    if gave_up || had_given_up {
        r.be_undecided();
    }
    if template.is_some() && !computed.volatile && !gave_up {
        r.slots.set(slot, out.get(start..).unwrap_or_default());
    }
    true
}

fn put_literal(texts: &Texts, number: u32, out: &mut Vec<u8>) {
    if let Some(text) = texts.get(number).and_then(Template::as_literal) {
        out.extend_from_slice(text);
    }
}
