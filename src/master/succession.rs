//! What the master does about the process before it and the one after it: a quit that waits for the new
//! binary, and tunnels that change hands. [`super::upgrade`] knows how the two talk.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::{Consignment, Master, Phase, Pressure, Then};
use crate::channel::{self, Delivery, Life};
use crate::error_log::Level;
use crate::http::tunnel::parcel::{self, Parcel};

/// The new binary's process takes over: the shards give their tunnels away before they are told to
/// end, and go on as they were if they get them back.
pub(super) struct HandingOver {
    pub(super) then: Then,
    round: usize,
    /// The shards that have not given all.
    giving: Vec<Life>,
    collected: Consignment,
    /// The shards are to end behind it: nobody has called them back.
    pub(super) is_wanted: bool,
}

/// The shards are told to end as soon as the new binary's process serves, which it does not yet: its
/// tunnels have nowhere to go, and clients would be refused meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Awaiting {
    pub(super) then: Then,
    /// When they are told without.
    pub(super) until: Option<Instant>,
}

/// How long a new process may take to serve, before a quit does not wait for it any more.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(30);

/// How often tunnels are collected that have begun while the ones before were handed over.
const ROUNDS_MAX: usize = 3;

impl Master<'_> {
    /// The new binary's process serves.
    pub(super) fn meet_successor(&mut self, tunnels: u16) {
        if let Some(process) = self.upgrade.welcome(tunnels, self.report) {
            self.notifier.main_pid(self.report, process);
        }
        if let Some(Awaiting { then, .. }) = self.awaiting.take() {
            self.finish(then);
        }
    }

    /// The new binary's process is gone: this one goes on, unless it is ending already.
    pub(super) fn miss_successor(&mut self, status: ExitStatus) {
        if self.awaiting.take().is_some() {
            let text = format_args!("the new binary process has not come to serve, going on");
            self.report.say(Level::Alert, text);
        }
        self.notifier.main_pid(self.report, std::process::id());
        // Then nobody serves, and whoever started this process is to know.
        self.has_failed |= self.is_ending() && !status.success();
        self.bring_back();
    }

    /// Makes the shards end when they have finished; the tunnels go to the new binary's process, if
    /// there is one that takes them.
    pub(super) fn finish(&mut self, then: Then) {
        if let Some(awaiting) = &mut self.awaiting {
            match (awaiting.then, then) {
                (_, Then::Rest) => {}
                (Then::Rest, Then::End) => awaiting.then = then,
                // Who asks again does not want to wait.
                (Then::End, Then::End) => self.leave(then, Pressure::Finish),
            }
            return;
        }
        let is_to_await = self.phase == Phase::Serving && self.upgrade.is_successor_starting();
        match &mut self.handing_over {
            Some(handing_over) => {
                if then == Then::End || !handing_over.is_wanted {
                    handing_over.then = then;
                }
                handing_over.is_wanted = true;
            }
            None if is_to_await => {
                let process = self.upgrade.successor().unwrap_or_default();
                let text = format_args!("waiting for new binary process {process} to serve");
                self.report.notice(text);
                let until = Instant::now().checked_add(SUCCESSOR_PATIENCE);
                self.awaiting = Some(Awaiting { then, until });
            }
            None if self.phase == Phase::Serving && self.upgrade.courier().is_some() => {
                self.begin_handing_over(then, 1);
            }
            None => self.leave(then, Pressure::Finish),
        }
    }

    fn begin_handing_over(&mut self, then: Then, round: usize) {
        let giving = self.shards.serving();
        if giving.is_empty() {
            return self.leave(then, Pressure::Finish);
        }
        self.shards.tell(|| channel::Command::GiveTunnels);
        let collected = Vec::new();
        let is_wanted = true;
        self.handing_over = Some(HandingOver { then, round, giving, collected, is_wanted });
    }

    /// A shard gives tunnels away: to the new process, or to another shard.
    pub(super) fn route(&mut self, life: Life, parcels: Vec<Parcel>) {
        let is_leaving = matches!(self.phase, Phase::Leaving { .. });
        match (&mut self.handing_over, self.upgrade.courier()) {
            (Some(handing_over), _) if handing_over.giving.contains(&life) => {
                handing_over.collected.push((life, parcels));
            }
            // Their handshakes were under way when all the others went.
            (_, Some((courier, _))) if is_leaving => {
                courier.send(Delivery::Late, vec![(life, parcels)]);
                self.late_deliveries = self.late_deliveries.saturating_add(1);
            }
            _ => self.shards.place(Some(life), parcels),
        }
    }

    /// A shard has given all that it had, or has ended. When all have, it is sent.
    pub(super) fn collect(&mut self, life: Life) {
        let Some(handing_over) = &mut self.handing_over else { return };
        let before = handing_over.giving.len();
        handing_over.giving.retain(|giving| *giving != life);
        if before == 0 || !handing_over.giving.is_empty() {
            return;
        }
        let collected = std::mem::take(&mut handing_over.collected);
        match self.upgrade.courier() {
            None => self.handed_over(0, Some(("it is gone".to_owned(), collected))),
            Some(_) if collected.is_empty() => self.handed_over(0, None),
            Some((courier, _)) => courier.send(Delivery::Round, collected),
        }
    }

    pub(super) fn handed_over(&mut self, count: usize, failed: Option<(String, Consignment)>) {
        let process = self.upgrade.successor().unwrap_or_default();
        let handing_over = self.handing_over.take();
        if let Some((why, consignment)) = failed {
            // As if nobody had told it to quit: nobody else has what it holds.
            self.report.say(
                Level::Alert,
                format_args!(
                    "handing tunnels over to new binary process {process} failed: {why}, going on"
                ),
            );
            self.upgrade.keep_tunnels();
            for (life, parcels) in consignment {
                self.shards.give_back(life, parcels);
            }
            return;
        }
        if count > 0 {
            self.report.notice(format_args!(
                "{count} tunnels handed over to new binary process {process}"
            ));
        }
        let Some(HandingOver { then, round, is_wanted: true, .. }) = handing_over else { return };
        // Others have begun meanwhile.
        if count > 0 && round < ROUNDS_MAX && self.phase == Phase::Serving {
            self.begin_handing_over(then, round.saturating_add(1));
        } else {
            self.leave(then, Pressure::Finish);
        }
    }

    /// Tunnels that began in shards which were to end; those that have not arrived are theirs again, or of
    /// shards that serve by now.
    pub(super) fn handed_over_late(&mut self, count: usize, failed: Option<(String, Consignment)>) {
        self.late_deliveries = self.late_deliveries.saturating_sub(1);
        let process = self.upgrade.successor().unwrap_or_default();
        if let Some((why, consignment)) = failed {
            let text =
                format_args!("handing tunnels over to new binary process {process} failed: {why}");
            self.report.say(Level::Alert, text);
            self.upgrade.keep_tunnels();
            for (life, parcels) in consignment {
                match self.phase {
                    Phase::Serving => self.shards.place(Some(life), parcels),
                    _ => self.shards.give_back(life, parcels),
                }
            }
        } else {
            self.report.notice(format_args!(
                "{count} tunnels handed over to new binary process {process}"
            ));
        }
        self.go_on_if_all_ended();
    }

    /// Tunnels of the old binary's process.
    pub(super) fn inherit(&mut self, mut parcels: Vec<Parcel>) {
        if self.phase != Phase::Serving || self.handing_over.is_some() {
            return self.upgrade.refuse_tunnels();
        }
        if !self.upgrade.take_tunnels() {
            return;
        }
        // The shards may not be allowed to open them.
        let failed = parcel::open_logs(&mut parcels, &self.common.files);
        for error in failed {
            self.report.say(Level::Emerg, format_args!("{error}"));
        }
        self.report.notice(format_args!("took over {} tunnels", parcels.len()));
        self.shards.place(None, parcels);
    }
}
