//! The main thread: reads the configuration, opens what it needs, starts the shards, and then obeys
//! signals (reload, reopen, quit) until it is over.

mod courier;
mod demo;
mod dry_run;
mod failure;
mod handover;
mod listening;
mod notify;
mod pid_file;
mod prober;
mod report;
mod setup;
mod shards;
mod signals;
mod succession;
mod upgrade;

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::VERSION;
use crate::channel::{self, Delivery, Event, Events, LateTunnels, Life};
use crate::counters::AllCounters;
use crate::error_log::{Destination, Errno, Files, Level, LogFile};
use crate::http::listener::End;
use crate::io::runtime::{self, Ring};
use crate::modules::{self, Config, LoadOptions};
use crate::options::{self, Banner, Command, Options};
use crate::os::{self, BlockedSignals};
pub use courier::Consignment;
use failure::Failure;
pub use handover::fuzz_handover;
use listening::{Listening, Opened, RETIREMENT};
use notify::Notifier;
use pid_file::PidFile;
pub use pid_file::fuzz_pid;
use prober::Prober;
use report::Report;
use shards::{Common, Lost, Now, Shards, addresses};
use signals::{Answer, Order, Received, Signal};
use succession::{Awaiting, HandingOver};
use upgrade::inherited::Inherited;
pub use upgrade::inherited::fuzz_inherited;
use upgrade::{Relatives, Upgrade};

/// Does what the command line asks for; the process ends with the result.
pub fn run(options: Options) -> ExitCode {
    match options.command {
        Command::Manual => print(&modules::manual()),
        Command::Test { banner, dump, quiet } => {
            banner.map(show);
            dry_run::run(&options, dump, quiet)
        }
        Command::Show(banner) => show(banner),
        Command::Signal(signal) => send(&options, signal),
        Command::Demo => demo::run(options),
        Command::Run => {
            // First: a successor finds the manager's variables only if they are given to it.
            let notifier = Notifier::from_environment();
            let inherited = Inherited::take();
            match signals::block() {
                Ok(signals) => serve(options, signals, notifier, inherited, None),
                Err(error) => {
                    eprintln!("nginx: [emerg] sigprocmask() failed ({})", Errno::of(&error));
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// `-v`, `-V`, `-h`
fn show(banner: Banner) -> ExitCode {
    let ring_features = match banner {
        Banner::VersionLong => runtime::features(),
        Banner::Version | Banner::Help => String::new(),
    };
    eprint!("{}", options::banner(banner, &ring_features));
    ExitCode::SUCCESS
}

fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    // A reader that wants no more of it is no failure.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    ExitCode::SUCCESS
}

/// `-s`: the configuration is read to find the pid file.
fn send(options: &Options, signal: options::Signal) -> ExitCode {
    let files = Files::default();
    let report = Report::first(&options.error_log, &files);
    let loaded = match setup::load(&setup::load_options(options), &report) {
        Ok(loaded) => loaded,
        Err(failure) => {
            report.say(failure.level(), format_args!("{failure}"));
            return ExitCode::FAILURE;
        }
    };
    report.notice(format_args!("signal process started"));
    if signal == options::Signal::Upgrade {
        return match upgrade::command::upgrade(&loaded.config.process.pid) {
            Ok(replaced) => {
                eprintln!("nginx: {replaced}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                report.say(error.level(), format_args!("{error}"));
                ExitCode::FAILURE
            }
        };
    }
    match pid_file::signal(&loaded.config.process.pid, signal.number()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report.say(error.level(), format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

/// Starts, serves and ends. `greeting` is printed once all shards serve.
fn serve(
    options: Options,
    signals: BlockedSignals,
    notifier: Notifier,
    inherited: Inherited,
    greeting: Option<String>,
) -> ExitCode {
    let files = Arc::new(Files::default());
    let mut report = Report::first(&options.error_log, &files);
    let started =
        Master::start(options, signals, notifier, inherited, greeting, files, &mut report);
    let failure = match started {
        Ok(master) => return master.watch(),
        Err(failure) => failure,
    };
    report.say(failure.level(), format_args!("{failure}"));
    ExitCode::FAILURE
}

/// How long shards get for [`channel::Command::Exit`] and [`channel::Command::CloseAll`].
const PATIENCE: Duration = Duration::from_secs(1);

/// The process after it has started.
struct Master<'a> {
    load: LoadOptions,
    report: &'a mut Report,
    config: Arc<Config>,
    /// Every log of `config`, so that shards find them open.
    logs: Vec<Arc<LogFile>>,
    listening: Listening,
    /// When sockets that the configuration does not need any more are closed.
    retired_until: Option<Instant>,
    pid_file: PidFile,
    upgrade: Upgrade,
    /// In the background, by itself or as the process before was.
    is_daemon: bool,
    common: Common,
    shards: Shards,
    prober: Prober,
    events: Receiver<Event>,
    phase: Phase,
    /// When those that finish beside others, which came back (WINCH, HUP), are made to end.
    stragglers_until: Option<Instant>,
    handing_over: Option<HandingOver>,
    /// Deliveries of [`Delivery::Late`] that have not been answered.
    late_deliveries: usize,
    awaiting: Option<Awaiting>,
    /// A reload was asked for while the shards were still taking over the one before.
    reloads_again: bool,
    greeting: Option<String>,
    notifier: Notifier,
    /// A shard could not start: the exit code tells.
    has_failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The shards were told to end.
    Leaving {
        then: Then,
        pressure: Pressure,
        /// When to press harder.
        until: Option<Instant>,
    },
    /// The shards have ended and nothing is listened on; the master waits for what comes (WINCH).
    Resting,
    Over,
}

/// What follows when the shards have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    End,
    Rest,
}

/// How shards are made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pressure {
    /// When they have finished what is under way.
    Finish,
    /// `worker_shutdown_timeout` has passed: what is under way is closed.
    Close,
    /// At once.
    Exit,
}

impl<'a> Master<'a> {
    /// Everything up to the running shards, in nginx's order: what can fail does so before the
    /// terminal is let go.
    fn start(
        options: Options,
        signals: BlockedSignals,
        notifier: Notifier,
        inherited: Inherited,
        greeting: Option<String>,
        files: Arc<Files>,
        report: &'a mut Report,
    ) -> Result<Self, Failure> {
        let Inherited { origin, predecessor, sockets, handover, remarks } = inherited;
        for (level, text) in remarks {
            report.say(level, format_args!("{text}"));
        }
        let load = setup::load_options(&setup::absolute(options)?);
        let config = Arc::new(setup::load(&load, report)?.config);
        let process = &config.process;
        let identity = setup::identity(&config)?;
        setup::make_temporary_directories(&config, identity.as_ref())?;
        let logs = setup::open_logs(&config, &files)?;
        report.follow(&process.error_log, &files)?;

        raise_limits(&config, report);
        let shards = *process.worker_processes;
        let relatives = Relatives::new(predecessor);
        let mut listening = Listening::new(shards, Arc::clone(&relatives));
        listening.inherit(sockets);
        let opened = listening.open(addresses(&config), shards, report)?;
        listening.adopt(opened, addresses(&config), report);
        listening.close_leaving();
        let ring = choose_ring(report);
        introduce(report, ring);

        runtime::note_panics();
        os::set_environment(&process.env);
        let is_detached = *process.daemon && predecessor.is_none();
        if is_detached {
            os::daemonize().map_err(Failure::call("daemon"))?;
        }
        // A new binary's says that it serves: the old one can be told to quit.
        let mut pid_file = PidFile::planned(&process.pid);
        if predecessor.is_none() {
            pid_file.write()?;
        }
        if let Some(directory) = process.working_directory.get() {
            os::change_directory(directory).map_err(Failure::path("chdir", directory))?;
        }
        redirect_stderr(&config, report);
        if let Some(identity) = &identity {
            if predecessor.is_some() && !os::is_root() && !identity.is_ours() {
                report.say(
                    Level::Warn,
                    format_args!("\"user\" has changed, which takes effect after a restart"),
                );
            }
            os::drop_privileges(identity)?;
        }

        let (sender, events) = Events::new();
        signals::forward(signals, sender.clone()).map_err(Failure::call("pthread_create"))?;
        let gives_up_capabilities = identity.is_some_and(|identity| !identity.is_root());
        let counters = Arc::<AllCounters>::default();
        let beats = notifier.beats();
        let common = Common { ring, counters, files, events: sender, gives_up_capabilities, beats };
        let shards = start_shards(&common, &config, &listening, report)?;
        let prober = Prober::start(&common, &config)?;
        report.leave_terminal();
        Ok(Master {
            load,
            report,
            config,
            logs,
            listening,
            retired_until: None,
            pid_file,
            upgrade: Upgrade::new(origin, relatives, handover, is_detached),
            is_daemon: is_detached || predecessor.is_some(),
            common,
            shards,
            prober,
            events,
            phase: Phase::Serving,
            stragglers_until: None,
            handing_over: None,
            late_deliveries: 0,
            awaiting: None,
            reloads_again: false,
            greeting,
            notifier,
            has_failed: false,
        })
    }

    /// Obeys until it is over.
    fn watch(mut self) -> ExitCode {
        while self.phase != Phase::Over {
            match self.next_event() {
                Some(Event::Ready { life }) => self.welcome(life),
                Some(Event::Reloaded { life }) => {
                    self.shards.has_reloaded(life);
                    self.complete_reload();
                }
                Some(Event::Ended { life, failure }) => self.bury(life, failure.as_deref()),
                Some(Event::Signal { number, sender }) => self.obey(number, sender),
                Some(Event::Tunnels { life, parcels }) => self.route(life, parcels),
                Some(Event::GaveAll { life }) => self.collect(life),
                Some(Event::SuccessorReady { tunnels }) => self.meet_successor(tunnels),
                Some(Event::Delivered { delivery: Delivery::Round, count, failed }) => {
                    self.handed_over(count, failed);
                    self.go_on_if_all_ended();
                }
                Some(Event::Delivered { delivery: Delivery::Late, count, failed }) => {
                    self.handed_over_late(count, failed);
                }
                Some(Event::Inherited { parcels }) => self.inherit(parcels),
                None => {}
            }
            self.do_what_is_due(Instant::now());
        }
        self.end()
    }

    /// `None`: something is due.
    fn next_event(&self) -> Option<Event> {
        let received = match self.next_due() {
            Some(due) => self.events.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => self.events.recv().map_err(RecvTimeoutError::from),
        };
        received.ok()
    }

    fn next_due(&self) -> Option<Instant> {
        let of_phase = match self.phase {
            Phase::Leaving { until, .. } => until,
            Phase::Serving => self.shards.next_start(),
            Phase::Resting | Phase::Over => None,
        };
        let awaiting = self.awaiting.and_then(|awaiting| awaiting.until);
        let others =
            [awaiting, self.retired_until, self.stragglers_until, self.notifier.next_ping()];
        of_phase.into_iter().chain(others.into_iter().flatten()).min()
    }

    fn do_what_is_due(&mut self, at: Instant) {
        self.notifier.ping(at, self.report, |limit| self.shards.find_silent(limit));
        if self.retired_until.is_some_and(|until| until <= at) {
            self.retired_until = None;
            self.shards.close_leaving();
            self.listening.close_leaving();
        }
        if self.stragglers_until.is_some_and(|until| until <= at) {
            self.stragglers_until = None;
            self.shards.close_stragglers();
        }
        if let Some(Awaiting { then, until: Some(until) }) = self.awaiting
            && until <= at
        {
            self.leave(then, Pressure::Finish);
        }
        match self.phase {
            Phase::Leaving { until: Some(until), .. } if until <= at => self.press(),
            Phase::Serving if self.shards.next_start().is_some_and(|due| due <= at) => {
                let report = &*self.report;
                let say = |level, text: fmt::Arguments<'_>| report.say(level, text);
                let (config, listening) = (&self.config, &self.listening);
                let now = Now { common: &self.common, config, listening, say: &say };
                self.shards.start_due(at, &now);
            }
            _ => {}
        }
    }

    fn obey(&mut self, number: i32, sender: Option<u32>) {
        let Some(signal) = Signal::of(number) else { return };
        let answer = match signal.order {
            // A process in the foreground gets it when its terminal changes size.
            Order::StopShards if !self.is_daemon => Answer::Unheard,
            Order::Upgrade if self.upgrade.is_blocked(self.notifier.has_manager()) => {
                Answer::Ignored
            }
            _ => Answer::Obeyed,
        };
        self.report.notice(format_args!("{}", Received { signal, sender, answer }));
        match signal.order {
            Order::Upgrade if answer == Answer::Ignored => self.report.say(
                Level::Crit,
                format_args!(
                    "the changing binary signal is ignored: you should shutdown or terminate \
                     before either old or new binary's process"
                ),
            ),
            _ if answer != Answer::Obeyed => {}
            Order::Reload if self.upgrade.has_successor() => {
                self.notifier.reloading(self.report);
                self.bring_back();
                self.notifier.loaded(self.report);
                self.tell_ready(None);
            }
            Order::Reload => self.reload(),
            Order::ReopenLogs => self.reopen_logs(),
            Order::Upgrade if self.is_ending() => {}
            Order::Upgrade => self.upgrade.begin(
                &self.listening,
                &mut self.pid_file,
                &self.common.events,
                &self.notifier,
                self.report,
            ),
            Order::Reap => {
                if let Some(status) = self.upgrade.reap(&mut self.pid_file, self.report) {
                    self.miss_successor(status);
                }
            }
            Order::StopShards if self.phase == Phase::Serving => self.finish(Then::Rest),
            Order::StopShards => {}
            Order::Quit => self.finish(Then::End),
            Order::Exit => self.leave(Then::End, Pressure::Exit),
        }
    }

    // Reload.

    fn reload(&mut self) {
        // One at a time: what the last one closes is closed before the next one may open it again.
        if self.shards.are_reloading() {
            self.reloads_again = true;
            return;
        }
        self.report.notice(format_args!("reconfiguring"));
        self.notifier.reloading(self.report);
        let result = match self.phase {
            Phase::Serving | Phase::Resting | Phase::Leaving { then: Then::Rest, .. } => {
                self.try_reload()
            }
            Phase::Leaving { .. } | Phase::Over => {
                self.report.notice(format_args!("the shards are ending, nothing is loaded"));
                Ok(())
            }
        };
        if let Err(failure) = &result {
            self.report.say(failure.level(), format_args!("{failure}"));
        }
        self.notifier.loaded(self.report);
        self.tell_ready(result.err().as_ref());
    }

    fn complete_reload(&mut self) {
        if self.shards.are_reloading() {
            return;
        }
        // The old configuration is gone, but for requests under way.
        os::release_memory();
        self.tell_ready(None);
        if std::mem::take(&mut self.reloads_again) {
            self.reload();
        }
    }

    /// Tells the service manager, unless some shard is still to come.
    fn tell_ready(&mut self, failure: Option<&Failure>) {
        if !self.shards.are_settled() {
            return;
        }
        let (serving, all) = self.shards.count();
        match failure {
            None => {
                let status = format_args!("{serving} of {all} shards serve");
                self.notifier.ready(self.report, status);
            }
            Some(failure) => {
                let status = format_args!("{serving} of {all} shards serve as before: {failure}");
                self.notifier.ready(self.report, status);
            }
        }
    }

    /// Whatever fails, fails before anything has changed.
    fn try_reload(&mut self) -> Result<(), Failure> {
        let config = Arc::new(setup::load(&self.load, self.report)?.config);
        let owner = setup::identity(&config)?;
        setup::make_temporary_directories(&config, owner.as_ref())?;
        let logs = setup::open_logs(&config, &self.common.files)?;
        let shards = *config.process.worker_processes;
        if matches!(self.phase, Phase::Leaving { .. }) && !self.listening.is_shared() {
            // The shards have been told to end listening, also for the sockets that are here.
            self.listening.shut_down();
            self.retired_until = None;
        }
        let opened = self.listening.open(addresses(&config), shards, self.report)?;
        let pid_file = if *config.process.pid == *self.pid_file.path() {
            None
        } else {
            Some(PidFile::written(&config.process.pid)?)
        };

        let shards_before = self.listening.shards();
        self.listening.adopt(opened, addresses(&config), self.report);
        if let Err(failure) = self.hand_over(&config) {
            let before = Opened::none(shards_before);
            self.listening.adopt(before, addresses(&self.config), self.report);
            self.listening.close_leaving();
            return Err(failure);
        }
        self.retire_what_leaves();
        self.replace_prober(&config);
        // The logs are open, so this finds them.
        self.report.follow(&config.process.error_log, &self.common.files)?;
        redirect_stderr(&config, self.report);
        self.say_what_takes_a_restart(&config);
        raise_limits(&config, self.report);
        self.go_to_working_directory(&config);
        if let Some(pid_file) = pid_file {
            self.pid_file = pid_file;
        }
        self.config = config;
        self.logs = logs;
        Ok(())
    }

    /// Gives the shards a configuration; starts them where there are none.
    fn hand_over(&mut self, config: &Arc<Config>) -> Result<(), Failure> {
        if let (Some(http), Some(old)) = (&config.http, &self.config.http) {
            http.take_over(old);
        }
        let report = &*self.report;
        let say = |level, text: fmt::Arguments<'_>| report.say(level, text);
        let (common, listening) = (&self.common, &self.listening);
        let now = Now { common, config, listening, say: &say };
        match self.phase {
            Phase::Resting => self.shards = start_shards(common, config, listening, report)?,
            Phase::Leaving { .. } => {
                report.notice(format_args!("start worker processes"));
                self.shards.start_beside(&now)?;
            }
            Phase::Serving | Phase::Over => return self.shards.reload(&now),
        }
        self.serve_again();
        Ok(())
    }

    /// Shards and addresses that the configuration does not have any more get no new connections; what
    /// is on its way to them is accepted for some time.
    fn retire_what_leaves(&mut self) {
        let of_sockets = self.listening.retire_leaving(self.report);
        let of_shards = self.shards.are_leaving().then_some(RETIREMENT);
        if let Some(time) = of_sockets.or(of_shards) {
            self.retired_until = Instant::now().checked_add(time);
        }
    }

    /// The shards have the new configuration: from here on nothing is to fail any more.
    fn replace_prober(&mut self, config: &Arc<Config>) {
        // The old one is to be gone before the new one begins.
        self.prober = Prober::default();
        match Prober::start(&self.common, config) {
            Ok(prober) => self.prober = prober,
            Err(failure) => self.report.say(Level::Alert, format_args!("{failure}")),
        }
    }

    fn say_what_takes_a_restart(&self, next: &Config) {
        let changed = [
            ("user", next.process.user.get() != self.config.process.user.get()),
            ("daemon", *next.process.daemon != *self.config.process.daemon),
        ];
        for (directive, _) in changed.iter().filter(|(_, changed)| *changed) {
            self.report.say(
                Level::Warn,
                format_args!("\"{directive}\" has changed, which takes effect after a restart"),
            );
        }
    }

    /// Nothing is found by a relative path: one that cannot be gone to is no reason not to serve.
    fn go_to_working_directory(&self, next: &Config) {
        let (directory, before) =
            (next.process.working_directory.get(), self.config.process.working_directory.get());
        if directory != before
            && let Some(directory) = directory
            && let Err(e) = os::change_directory(directory)
        {
            let failure = Failure::path("chdir", directory)(e);
            self.report.say(Level::Alert, format_args!("{failure}"));
        }
    }

    fn reopen_logs(&mut self) {
        self.report.notice(format_args!("reopening logs"));
        self.shards.tell(|| channel::Command::FlushLogs);
        for error in self.common.files.reopen() {
            self.report.say(Level::Emerg, format_args!("{error}"));
        }
        redirect_stderr(&self.config, self.report);
    }

    // The shards' beginning and end.

    fn welcome(&mut self, life: Life) {
        if !self.shards.is_ready(life) {
            return self.tell_ready(None);
        }
        if let Some(greeting) = self.greeting.take() {
            print(&greeting);
        }
        // Who finds the pid file may tell the old process to quit, which is to know by then.
        self.upgrade.say_ready(&self.common.events);
        if let Err(failure) = self.pid_file.write() {
            self.report.say(Level::Emerg, format_args!("{failure}"));
            self.has_failed = true;
            return self.leave(Then::End, Pressure::Exit);
        }
        self.tell_ready(None);
    }

    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Leaving { then: Then::End, .. } | Phase::Over)
    }

    /// Lets the shards accept again that were told to finish (WINCH), under the configuration that
    /// they had: of an upgrade nothing has come.
    fn bring_back(&mut self) {
        self.listening.take_all(self.report);
        if let Some(handing_over) = &mut self.handing_over
            && handing_over.then == Then::Rest
        {
            handing_over.is_wanted = false;
        }
        self.awaiting = self.awaiting.filter(|awaiting| awaiting.then != Then::Rest);
        if !matches!(self.phase, Phase::Resting | Phase::Leaving { then: Then::Rest, .. }) {
            return;
        }
        match self.start_again() {
            Ok(()) => self.replace_prober(&Arc::clone(&self.config)),
            Err(failure) => self.report.say(Level::Emerg, format_args!("{failure}")),
        }
    }

    fn start_again(&mut self) -> Result<(), Failure> {
        let shards = self.listening.shards();
        let opened = self.listening.open(addresses(&self.config), shards, self.report)?;
        self.listening.adopt(opened, addresses(&self.config), self.report);
        self.report.notice(format_args!("start worker processes"));
        let report = &*self.report;
        let say = |level, text: fmt::Arguments<'_>| report.say(level, text);
        let (common, config, listening) = (&self.common, &self.config, &self.listening);
        self.shards.start_beside(&Now { common, config, listening, say: &say })?;
        self.serve_again();
        Ok(())
    }

    /// Others serve. Those that were told to end keep their time for that.
    fn serve_again(&mut self) {
        if let Phase::Leaving { until, .. } = self.phase {
            self.stragglers_until = until;
        }
        self.phase = Phase::Serving;
    }

    /// Tells the service manager: the service goes on if another process has it.
    fn tell_end(&mut self, status: &str) {
        if let Some(predecessor) = self.upgrade.predecessor() {
            // Nothing has come of the upgrade.
            self.notifier.hand_back(self.report, predecessor);
        } else if let Some(process) = self.upgrade.successor() {
            // Even if it does not serve yet.
            self.notifier.main_pid(self.report, process);
        }
        self.notifier.stopping(self.report, status);
    }

    /// Makes the shards end. Asked twice, the harder way counts.
    fn leave(&mut self, then: Then, pressure: Pressure) {
        let status = match pressure {
            Pressure::Finish => "finishing what is under way",
            Pressure::Close | Pressure::Exit => "ending what is under way",
        };
        if let Phase::Leaving { then: before, pressure: begun, until } = self.phase
            && pressure == Pressure::Finish
        {
            // The shards know, and their time goes on: who is told again has no more of it.
            if (before, then) == (Then::Rest, Then::End) {
                self.tell_end(status);
                self.listening.close(self.report);
                self.phase = Phase::Leaving { then, pressure: begun, until };
            }
            return;
        }
        self.awaiting = None;
        match then {
            Then::End => self.tell_end(status),
            Then::Rest => self.notifier.status(self.report, status),
        }
        let until = match pressure {
            Pressure::Finish => {
                self.report.notice(format_args!("gracefully shutting down"));
                let end = if self.listening.is_shared() { End::LetGo } else { End::ShutDown };
                if then == Then::End {
                    // Clients are refused at once, not when the shards are gone.
                    self.listening.close(self.report);
                }
                let late = match self.upgrade.courier() {
                    Some(_) => LateTunnels::Give,
                    None => LateTunnels::Close,
                };
                self.shards.tell(|| channel::Command::Quit { end, late });
                let timeout = self.config.process.worker_shutdown_timeout.get();
                timeout.and_then(|timeout| Instant::now().checked_add(*timeout))
            }
            Pressure::Close => {
                self.shards.tell(|| channel::Command::CloseAll);
                #[expect(clippy::arithmetic_side_effects, reason = "a second from now")]
                Some(Instant::now() + PATIENCE)
            }
            Pressure::Exit => {
                self.shards.tell(|| channel::Command::Exit);
                #[expect(clippy::arithmetic_side_effects, reason = "a second from now")]
                Some(Instant::now() + PATIENCE)
            }
        };
        self.phase = Phase::Leaving { then, pressure, until };
        self.prober = Prober::default();
        self.go_on_if_all_ended();
    }

    /// The time that the shards were given is over.
    fn press(&mut self) {
        let Phase::Leaving { then, pressure, .. } = self.phase else { return };
        match pressure {
            Pressure::Finish => self.leave(then, Pressure::Close),
            Pressure::Close => self.leave(then, Pressure::Exit),
            // What still runs ends with the process.
            Pressure::Exit => self.phase = Phase::Over,
        }
    }

    fn bury(&mut self, life: Life, failure: Option<&str>) {
        let lost = self.shards.has_ended(life, &self.common);
        self.collect(life);
        self.shards.place_homeless();
        let is_leaving = matches!(self.phase, Phase::Leaving { .. });
        if failure.is_some() || !(is_leaving || lost == Lost::Leaver) {
            let reason = failure.unwrap_or("it was not told to");
            self.report.say(Level::Alert, format_args!("shard {} exited: {reason}", life.shard));
        } else if !is_leaving {
            self.report.notice(format_args!("shard {} exited", life.shard));
        }
        // Others go on until it is started again; one that could not even start spoils the start.
        if !is_leaving && lost == Lost::AtStart {
            self.has_failed = true;
            self.leave(Then::End, Pressure::Exit);
        }
        self.complete_reload();
        self.go_on_if_all_ended();
    }

    fn go_on_if_all_ended(&mut self) {
        if let Phase::Leaving { then, .. } = self.phase
            && self.shards.are_ended()
            && self.handing_over.is_none()
            && self.late_deliveries == 0
        {
            let homeless = self.shards.abandon_homeless();
            if homeless > 0 {
                let text =
                    format_args!("{homeless} tunnels closed: no shard is left that has them");
                self.report.say(Level::Alert, text);
            }
            self.phase = match then {
                Then::End => Phase::Over,
                Then::Rest => {
                    // A reload opens everything anew. What others listen on stays as it is.
                    if !self.listening.is_shared() {
                        self.listening.shut_down();
                        self.retired_until = None;
                    }
                    Phase::Resting
                }
            };
        }
    }

    /// The traces that a process leaves are removed, sockets' files last.
    fn end(self) -> ExitCode {
        drop(self.pid_file);
        self.report.notice(format_args!("exit"));
        drop(self.listening);
        if self.has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

fn start_shards(
    common: &Common,
    config: &Arc<Config>,
    listening: &Listening,
    report: &Report,
) -> Result<Shards, Failure> {
    report.notice(format_args!("start worker processes"));
    let say = |level, text: fmt::Arguments<'_>| report.say(level, text);
    Shards::start(&Now { common, config, listening, say: &say })
}

/// The kernel's ring, or epoll where that is denied.
fn choose_ring(report: &Report) -> Ring {
    let (ring, denial) = Ring::detect();
    if let Some(error) = denial {
        let text = format_args!("io_uring is not available ({}), using epoll", Errno::of(&error));
        report.say(Level::Warn, text);
    }
    ring
}

/// What an operator looks for in the log of a start.
fn introduce(report: &Report, ring: Ring) {
    report.notice(format_args!("using the \"{}\" event method", ring.name()));
    report.notice(format_args!("ringx/{VERSION}"));
    report.notice(format_args!("built by {}", env!("RINGX_COMPILER")));
    report.notice(format_args!("OS: {}", os::kernel()));
    let limits = os::open_files();
    let number = |limit: Option<u64>| limit.map_or_else(|| "-1".to_owned(), |n| n.to_string());
    report.notice(format_args!(
        "getrlimit(RLIMIT_NOFILE): {}:{}",
        number(limits.soft),
        number(limits.hard)
    ));
}

/// The limits of the whole process. One that cannot be set is no reason not to serve.
fn raise_limits(config: &Config, report: &Report) {
    let alert = |what: &str, result: io::Result<()>| {
        if let Err(e) = result {
            let text = format_args!("setrlimit({what}) failed ({})", Errno::of(&e));
            report.say(Level::Alert, text);
        }
    };
    let limit = config.process.worker_rlimit_nofile.get().copied();
    alert("RLIMIT_NOFILE", os::raise_nofile(limit));
    if let Some(size) = config.process.worker_rlimit_core.get() {
        alert("RLIMIT_CORE", os::limit_core(*size));
    }
    let shards = *config.process.worker_processes;
    let connections = *config.events.worker_connections;
    if let Some(soft) = os::open_files().soft
        && shards.saturating_mul(connections) as u64 > soft
    {
        report.say(
            Level::Warn,
            format_args!(
                "{connections} worker_connections of each of {shards} shards exceed open file \
                 resource limit: {soft}"
            ),
        );
    }
}

/// Standard error goes where the log goes, so that a panic is found there; unless it is some log
/// itself.
fn redirect_stderr(config: &Config, report: &Report) {
    let locations = config.http.iter().flat_map(|http| &http.locations);
    let mut inner = locations.flat_map(|location| location.settings.core.error_log.iter());
    if inner.any(|target| target.destination == Destination::Stderr) {
        return;
    }
    let Some(path) = report::first_file(&config.process.error_log) else { return };
    if let Err(e) = append_to(path).and_then(|file| os::redirect_stderr(&file)) {
        report.say(Level::Alert, format_args!("dup2(STDERR) failed ({})", Errno::of(&e)));
    }
}

fn append_to(path: &Path) -> io::Result<std::fs::File> {
    // It may have been renamed a moment ago, and be about to be opened anew.
    OpenOptions::new().append(true).create(true).open(path)
}
