//! nginx's modules, a file each: the settings of a level, the directive rows that fill them, and
//! the module's own code.

pub mod access;
pub mod access_log;
pub mod core;
pub mod exchange;
pub mod geo;
pub mod headers;
pub mod health_check;
pub mod map;
pub mod proxy;
pub mod realip;
pub mod resolver;
pub mod rewrite;
pub mod split_clients;
pub mod static_files;
pub mod status;
pub mod sticky;
pub mod stub_status;
pub mod upstream;
pub mod uwsgi;
pub mod websocket;

/// Everything one level of the configuration (http, server, location, `if`) says.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub core: core::Settings,
    pub rewrite: rewrite::Settings,
    pub access: access::Settings,
    pub headers: headers::Settings,
    pub proxy: proxy::Settings,
    pub uwsgi: uwsgi::Settings,
    pub access_log: access_log::Settings,
    pub websocket: websocket::Settings,
    pub realip: realip::Settings,
    pub resolver: resolver::Settings,
    /// Not inherited.
    pub health_check: health_check::Settings,
}

impl Settings {
    /// Takes from the outer level what this one does not set.
    pub fn inherit(&mut self, outer: &Self) {
        self.core.inherit(&outer.core);
        self.rewrite.inherit(&outer.rewrite);
        self.access.inherit(&outer.access);
        self.headers.inherit(&outer.headers);
        self.proxy.inherit(&outer.proxy);
        self.uwsgi.inherit(&outer.uwsgi);
        self.access_log.inherit(&outer.access_log);
        self.websocket.inherit(&outer.websocket);
        self.realip.inherit(&outer.realip);
        self.resolver.inherit(&outer.resolver);
    }
}
