//! Rules of `proxy_redirect`, `proxy_cookie_domain` and `proxy_cookie_path`: the first one that fits
//! a value of the upstream's says what the client gets instead.

use std::sync::Arc;

use crate::config::diagnostic::{Outcome, fault};
use crate::config::setting::Setting;
use crate::config::value::Args;
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http::value;
use crate::http::variable::{GaveUp, Regex, Template};
use crate::http1::encode;

/// `off`, or rules in the order written.
#[derive(Debug, Clone, Default)]
pub struct Rules(pub Vec<Rule>);

#[derive(Debug, Clone)]
pub struct Rule {
    pub from: Pattern,
    pub to: Template,
}

#[derive(Debug, Clone)]
pub enum Pattern {
    /// The start of a value; the rest stays.
    Prefix(Template),
    /// A whole domain in any case; a leading dot of the value's stays.
    Domain(Template),
    /// Somewhere in a value, which is replaced whole.
    Regex(Arc<Regex>),
}

impl Rules {
    /// The new value, where a rule fits. Captures are the request's then.
    pub fn apply(&self, c: &Connection, r: &mut Request, value: &[u8]) -> Option<Vec<u8>> {
        self.0.iter().find_map(|rule| rule.apply(c, r, value))
    }
}

impl Rule {
    fn apply(&self, c: &Connection, r: &mut Request, value: &[u8]) -> Option<Vec<u8>> {
        let (kept_before, kept_behind): (&[u8], &[u8]) = match &self.from {
            Pattern::Prefix(from) => {
                (b"", value.strip_prefix(value::expanded(from, c, r).as_slice())?)
            }
            Pattern::Domain(from) => {
                let (dot, domain) = value.split_at(usize::from(value.starts_with(b".")));
                if !domain.eq_ignore_ascii_case(&value::expanded(from, c, r)) {
                    return None;
                }
                (dot, b"")
            }
            Pattern::Regex(regex) => {
                match regex.matches(value, r.captures.get_mut()) {
                    Ok(true) => r.set_named_captures(regex),
                    Ok(false) => return None,
                    Err(GaveUp) => {
                        r.give_up(c, regex);
                        return None;
                    }
                }
                (b"", b"")
            }
        };
        let mut new = kept_before.to_vec();
        value::expand(&self.to, c, r, &mut new);
        encode::clean_value(&mut new);
        new.extend_from_slice(kept_behind);
        Some(new)
    }
}

/// What one of several lines of such a directive adds to: the rules of this level so far. `off`
/// stands alone.
pub fn collect(slot: &Setting<Rules>, args: Args<'_>) -> Outcome<Vec<Rule>> {
    let before = slot.get().map(|rules| rules.0.clone());
    let is_off = args.len() == 1 && args.at(0) == "off";
    match before {
        Some(rules) if rules.is_empty() || is_off => Err(args.duplicate()),
        _ if args.len() == 1 && !is_off => fault!("invalid parameter \"{}\"", args.at(0)),
        before => Ok(before.unwrap_or_default()),
    }
}
