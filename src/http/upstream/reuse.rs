//! Which connections carry another request (proxy, section 12; uwsgi, section 9.1).

use std::rc::Rc;

use super::exchange::{Exchange, Family};
use super::pool::{RequestSent, Taken, UpstreamConnection, Use};
use super::protocol::BodyForm;
use super::trial::Reuse;
use crate::error_log::Level;
use crate::http::modules::upstream::{Peer, PeerAddress};
use crate::http::modules::uwsgi::UwsgiKeepalive;
use crate::http::request::Request;
use crate::io::timer;

impl Exchange<'_> {
    /// What a connection is kept and taken as.
    fn connection_for<'p>(&'p self, r: &Request, peer: &'p Peer) -> Use<'p> {
        Use {
            address: &peer.address,
            family: self.family,
            location: r.location,
            location_name: &self.location.name,
        }
    }

    /// A connection that has been kept, unless a fresh one is wanted.
    pub(super) fn idle_connection(
        &self,
        r: &Request,
        peer: &Peer,
        is_fresh: bool,
    ) -> Option<UpstreamConnection> {
        let is_kept_at_all = match self.family {
            Family::Proxy => true,
            Family::Uwsgi => *self.location.settings.uwsgi.keepalive != UwsgiKeepalive::Off,
        };
        if !is_kept_at_all || is_fresh {
            return None;
        }
        let (wanted, lent) = (self.connection_for(r, peer), &self.group.lent);
        let Taken { connection, lender } =
            self.group.pool.borrow_mut().take(wanted, timer::now_ms(), lent)?;
        let shard = &self.c.shard;
        if lender.is_some_and(|lender| lender != shard.life.shard) {
            shard.counters.borrowed.add(1);
        }
        Some(connection)
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
        if self.allows_another(r, &connection) && is_clean && self.is_kept(r, &connection) {
            let of = self.connection_for(r, peer);
            let (now_ms, shard) = (timer::now_ms(), self.c.shard.life.shard);
            let lent = &self.group.lent;
            self.group.pool.borrow_mut().give(of, connection, now_ms, lent, shard);
        } else if is_clean && self.is_over(peer, &connection) {
            connection.stream.reset();
        }
    }

    /// Whether the response lets it carry another request.
    fn allows_another(&self, r: &Request, connection: &UpstreamConnection) -> bool {
        if self.family == Family::Proxy {
            return r.upstream_head.keep_alive();
        }
        let keepalive = *self.location.settings.uwsgi.keepalive;
        let mut pool = self.group.pool.borrow_mut();
        if keepalive == UwsgiKeepalive::Off || !pool.is_on() {
            return false;
        }
        let reuse = Reuse::of(keepalive, &r.upstream_head, r.message.is_head());
        if let Some(verdict) = pool.trial.answered(reuse, connection.reused) {
            let name = &self.upstream.name;
            self.c.log(r, Level::Warn, format_args!("{verdict}, in upstream \"{name}\""));
        }
        reuse == Reuse::Allowed && !pool.trial.is_given_up()
    }

    /// Whether nothing else speaks against it. A pool of an earlier configuration is swept by nobody.
    fn is_kept(&self, r: &Request, connection: &UpstreamConnection) -> bool {
        connection.request == RequestSent::AsAnnounced
            && Rc::ptr_eq(&r.generation, &self.c.shard.generation())
            && !self.c.shard.is_quitting()
    }

    /// Whether a uwsgi connection over TCP that is not kept can be ended by a reset: both sides have
    /// all that there was to have. It costs two segments less than taking leave in due form, and
    /// leaves no port waiting (`TIME_WAIT`) on either side. A body may still be on its way.
    fn is_over(&self, peer: &Peer, connection: &UpstreamConnection) -> bool {
        self.family == Family::Uwsgi
            && connection.request == RequestSent::AsAnnounced
            && self.body == BodyForm::None
            && matches!(peer.address, PeerAddress::Inet(_))
    }
}
