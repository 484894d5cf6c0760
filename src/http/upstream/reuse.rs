//! Which connections carry another request (proxy, section 12; uwsgi, section 9.1).

use std::rc::Rc;

use super::exchange::{Exchange, Family};
use super::pool::{UpstreamConnection, Use};
use super::protocol::BodyForm;
use crate::error_log::Level;
use crate::http::modules::upstream::{Peer, PeerAddress};
use crate::http::modules::uwsgi::UwsgiKeepalive;
use crate::http::request::Request;
use crate::http1::ConnectionOption;
use crate::io::timer;

impl Exchange<'_> {
    /// What a connection is kept and taken as.
    fn connection_for<'p>(&self, r: &Request, peer: &'p Peer) -> Use<'p> {
        Use { address: &peer.address, family: self.family, location: r.location }
    }

    /// A connection that has been kept, unless a `fresh` one is wanted.
    pub(super) fn idle_connection(
        &self,
        r: &Request,
        peer: &Peer,
        is_fresh: bool,
    ) -> Option<UpstreamConnection> {
        if self.keepalive() == UwsgiKeepalive::Off || is_fresh {
            return None;
        }
        let mut pool = self.group.pool.borrow_mut();
        let idle = pool.take(self.connection_for(r, peer), timer::now_ms());
        if self.family == Family::Uwsgi
            && pool.is_on()
            && let Some(verdict) = pool.trial.verdict()
        {
            self.c.log(r, Level::Warn, format_args!("{verdict}"));
        }
        idle
    }

    /// What becomes of a connection after its response: of a `clean` one, all has come and nothing
    /// else.
    pub(super) fn let_go(
        &self,
        r: &Request,
        peer: &Peer,
        connection: UpstreamConnection,
        is_clean: bool,
    ) {
        if is_clean && self.is_kept(r, &connection) {
            let of = self.connection_for(r, peer);
            self.group.pool.borrow_mut().give(of, connection, timer::now_ms());
        } else if is_clean && self.is_over(peer, &connection) {
            connection.stream.reset();
        }
    }

    /// Whether it can carry another request. A pool of an earlier configuration is swept by nobody.
    fn is_kept(&self, r: &Request, connection: &UpstreamConnection) -> bool {
        connection.request_is_sent
            && self.allows_another(r, connection)
            && Rc::ptr_eq(&r.generation, &self.c.shard.generation())
            && !self.c.shard.is_quitting()
    }

    fn allows_another(&self, r: &Request, connection: &UpstreamConnection) -> bool {
        let head = &r.upstream_head;
        let says = match self.keepalive() {
            UwsgiKeepalive::Off => return false,
            _ if self.family == Family::Proxy => return head.keep_alive(),
            // What a uwsgi server does with HEAD is not certain: some send the body.
            _ if r.message.is_head() => return false,
            UwsgiKeepalive::On => head.connection == ConnectionOption::KeepAlive,
            UwsgiKeepalive::Assume => head.connection != ConnectionOption::Close,
        };
        let trial = &mut self.group.pool.borrow_mut().trial;
        if says {
            trial.was_kept();
        } else {
            trial.was_refused();
        }
        if connection.reused {
            trial.was_reused();
        }
        says && !trial.is_hopeless()
    }

    /// `uwsgi_keepalive`; what is proxied is kept by `keepalive` alone.
    fn keepalive(&self) -> UwsgiKeepalive {
        match self.family {
            Family::Proxy => UwsgiKeepalive::On,
            Family::Uwsgi => *self.location.settings.uwsgi.keepalive,
        }
    }

    /// Whether a uwsgi connection over TCP that is not kept can be ended by a reset: both sides have
    /// all that there was to have. It costs two segments less than taking leave in due form, and
    /// leaves no port waiting (`TIME_WAIT`) on either side. A body may still be on its way.
    fn is_over(&self, peer: &Peer, connection: &UpstreamConnection) -> bool {
        self.family == Family::Uwsgi
            && connection.request_is_sent
            && self.body == BodyForm::None
            && matches!(peer.address, PeerAddress::Inet(_))
    }
}
