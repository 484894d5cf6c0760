//! The uwsgi module: HTTP to an application server that speaks the uwsgi protocol.

use std::sync::Arc;

use super::exchange::{self, Pass};
use crate::config::setting::{List, Own, Setting, inherit};
use crate::http::variable::Template;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub exchange: exchange::Settings,
    pub pass: Own<UwsgiPass>,
    pub param: List<Param>,
    pub modifier1: Setting<u8>,
    pub modifier2: Setting<u8>,
    pub string: Setting<Arc<str>>,

    /// The variables block of this level, worked out once from `param`.
    pub plan: Arc<BlockPlan>,
}

/// `uwsgi_pass address;`
#[derive(Debug, Clone)]
pub struct UwsgiPass {
    pub target: Pass,
    /// As the log shows it: `uwsgi://127.0.0.1:3031` or `uwsgi://unix:/path:`.
    pub url: Arc<str>,
}

/// `uwsgi_param KEY value [if_not_empty];`
#[derive(Debug, Clone)]
pub struct Param {
    pub key: Box<str>,
    pub value: Template,
    pub if_not_empty: bool,
}

/// The block in pieces: constant runs are encoded at load, only the rest is made for each request.
#[derive(Debug, Clone, Default)]
pub struct BlockPlan {
    pub pieces: Vec<Piece>,
    /// Client headers that are not sent because a `HTTP_*` key stands for them: their names in the
    /// form `HTTP_X_NAME`, sorted.
    pub suppressed: Vec<Box<[u8]>>,
    /// Whether the default `HTTP_HOST` is sent (no param names it).
    pub default_host: bool,
}

#[derive(Debug, Clone)]
pub enum Piece {
    /// Encoded pairs, ready to send.
    Constant(Box<[u8]>),
    Dynamic {
        /// Two bytes of length, then the key.
        encoded_key: Box<[u8]>,
        value: Template,
        if_not_empty: bool,
    },
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        self.exchange.inherit(&outer.exchange);
        inherit!(self, outer: param, modifier1, modifier2, string);
    }
}
