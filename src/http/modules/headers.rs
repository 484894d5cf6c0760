//! The headers module: `add_header`.

use crate::config::setting::{List, inherit};
use crate::http::variable::Template;

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
