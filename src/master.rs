//! The main thread: reads the configuration, opens what it needs, starts the shards, and then obeys
//! signals (reload, reopen, quit) until it is over.

mod demo;
mod dry_run;
mod failure;
mod listening;
mod notify;
mod pid_file;
mod prober;
mod report;
mod setup;
mod shards;
mod signals;

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::VERSION;
use crate::channel::{self, Event, Events};
use crate::error_log::{Destination, Errno, Files, Level, LogFile};
use crate::io::runtime::{self, Ring};
use crate::modules::{self, Config, LoadOptions};
use crate::options::{self, Banner, Command, Options};
use crate::os::{self, BlockedSignals};
use failure::Failure;
use listening::{Listening, Opened};
use notify::Notifier;
use pid_file::PidFile;
pub use pid_file::fuzz_pid;
use prober::Prober;
use report::Report;
use shards::{Common, Shards, addresses};
use signals::{Order, Received, Signal};

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
        Command::Run => match signals::block() {
            Ok(signals) => serve(options, signals, Notifier::from_environment(), None),
            Err(error) => {
                eprintln!("nginx: [emerg] sigprocmask() failed ({})", Errno::of(&error));
                ExitCode::FAILURE
            }
        },
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
            report.say(Level::Emerg, format_args!("{failure}"));
            return ExitCode::FAILURE;
        }
    };
    report.notice(format_args!("signal process started"));
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
    greeting: Option<String>,
) -> ExitCode {
    let files = Arc::new(Files::default());
    let mut report = Report::first(&options.error_log, &files);
    let failure = match Master::start(options, signals, notifier, greeting, files, &mut report) {
        Ok(master) => return master.watch(),
        Err(failure) => failure,
    };
    report.say(Level::Emerg, format_args!("{failure}"));
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
    pid_file: PidFile,
    common: Common,
    shards: Shards,
    prober: Prober,
    events: Receiver<Event>,
    phase: Phase,
    /// A reload was asked for while the shards were still taking over the one before.
    reloads_again: bool,
    greeting: Option<String>,
    notifier: Notifier,
    /// A shard could not start or all have failed: the exit code tells.
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
        greeting: Option<String>,
        files: Arc<Files>,
        report: &'a mut Report,
    ) -> Result<Self, Failure> {
        let load = setup::load_options(&setup::absolute(options)?);
        let config = Arc::new(setup::load(&load, report)?.config);
        let process = &config.process;
        let identity = setup::identity(&config)?;
        setup::make_temporary_directories(&config, identity.as_ref())?;
        let logs = setup::open_logs(&config, &files)?;
        report.follow(&process.error_log, &files)?;

        raise_limits(&config, report);
        let mut listening = Listening::new(*process.worker_processes);
        let opened = listening.open(addresses(&config), report)?;
        listening.adopt(opened, addresses(&config), report);
        let ring = choose_ring(report);
        introduce(report, ring);

        runtime::note_panics();
        os::set_environment(&process.env);
        if *process.daemon {
            os::daemonize().map_err(Failure::call("daemon"))?;
        }
        let pid_file = PidFile::write(&process.pid)?;
        if let Some(directory) = process.working_directory.get() {
            os::change_directory(directory).map_err(Failure::path("chdir", directory))?;
        }
        redirect_stderr(&config, report);
        if let Some(identity) = &identity {
            os::drop_privileges(identity)?;
        }

        let (sender, events) = Events::new();
        signals::forward(signals, sender.clone()).map_err(Failure::call("pthread_create"))?;
        let gives_up_capabilities = identity.is_some_and(|identity| !identity.is_root());
        let beats = notifier.beats();
        let common = Common { ring, files, events: sender, gives_up_capabilities, beats };
        let shards = start_shards(&common, &config, &listening, report)?;
        let prober = Prober::start(&common, &config)?;
        report.leave_terminal();
        Ok(Master {
            load,
            report,
            config,
            logs,
            listening,
            pid_file,
            common,
            shards,
            prober,
            events,
            phase: Phase::Serving,
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
                Some(Event::Ready { shard }) => self.welcome(shard),
                Some(Event::Reloaded { shard }) => {
                    self.shards.has_reloaded(shard);
                    self.complete_reload();
                }
                Some(Event::Ended { shard, failure }) => self.bury(shard, failure.as_deref()),
                Some(Event::Signal { number, sender }) => self.obey(number, sender),
                None => self.press(),
            }
        }
        self.end()
    }

    /// `None`: it is time to press harder.
    fn next_event(&mut self) -> Option<Event> {
        let press_at = match self.phase {
            Phase::Leaving { until, .. } => until,
            _ => None,
        };
        loop {
            let now = Instant::now();
            self.notifier.ping(now, self.report, |limit| self.shards.find_silent(limit));
            let received = match press_at.into_iter().chain(self.notifier.next_ping()).min() {
                Some(until) => self.events.recv_timeout(until.saturating_duration_since(now)),
                None => self.events.recv().map_err(RecvTimeoutError::from),
            };
            match received {
                Ok(event) => return Some(event),
                Err(_) if press_at.is_some_and(|at| at <= Instant::now()) => return None,
                Err(_) => {}
            }
        }
    }

    fn obey(&mut self, number: i32, sender: Option<u32>) {
        let Some(signal) = Signal::of(number) else { return };
        // A process in the foreground gets it when its terminal changes size.
        let is_ignored = signal.order == Order::StopShards && !*self.config.process.daemon;
        self.report.notice(format_args!("{}", Received { signal, sender, is_ignored }));
        match signal.order {
            _ if is_ignored => {}
            Order::Reload => self.reload(),
            Order::ReopenLogs => self.reopen_logs(),
            Order::Upgrade => self.report.say(
                Level::Crit,
                format_args!("the changing binary signal is ignored: it is not supported yet"),
            ),
            Order::StopShards if self.phase == Phase::Serving => {
                self.leave(Then::Rest, Pressure::Finish);
            }
            Order::StopShards => {}
            Order::Quit => {
                // Clients are refused at once, not when the shards are gone.
                self.listening.close();
                self.leave(Then::End, Pressure::Finish);
            }
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
            Phase::Serving | Phase::Resting => self.try_reload(),
            Phase::Leaving { .. } | Phase::Over => {
                self.report.notice(format_args!("the shards are ending, nothing is loaded"));
                Ok(())
            }
        };
        if let Err(failure) = &result {
            self.report.say(Level::Emerg, format_args!("{failure}"));
        }
        self.notifier.loaded(self.report);
        self.tell_ready(result.err().as_ref());
    }

    /// Closes what is listened on no more once no shard accepts from it.
    fn complete_reload(&mut self) {
        if self.shards.are_reloading() {
            return;
        }
        self.listening.close_leaving();
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
        let (serving, all) = (self.shards.serving(), self.shards.len());
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
        let opened = self.listening.open(addresses(&config), self.report)?;
        let pid_file = if *config.process.pid == *self.pid_file.path() {
            None
        } else {
            Some(PidFile::write(&config.process.pid)?)
        };

        self.listening.adopt(opened, addresses(&config), self.report);
        if let Err(failure) = self.hand_over(&config) {
            self.listening.adopt(Opened::none(), addresses(&self.config), self.report);
            self.listening.close_leaving();
            return Err(failure);
        }
        self.replace_prober(&config);
        // The logs are open, so this finds them.
        self.report.follow(&config.process.error_log, &self.common.files)?;
        redirect_stderr(&config, self.report);
        self.say_what_takes_a_restart(&config);
        raise_limits(&config, self.report);
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
        if self.phase != Phase::Resting {
            return self.shards.reload(config, &self.listening);
        }
        self.shards = start_shards(&self.common, config, &self.listening, self.report)?;
        self.phase = Phase::Serving;
        Ok(())
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
        let (wanted, there) = (*next.process.worker_processes, self.shards.len());
        let changed = [
            ("worker_processes", wanted != there),
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

    fn reopen_logs(&mut self) {
        self.report.notice(format_args!("reopening logs"));
        self.shards.tell(|| channel::Command::FlushLogs);
        for error in self.common.files.reopen() {
            self.report.say(Level::Emerg, format_args!("{error}"));
        }
        redirect_stderr(&self.config, self.report);
    }

    // The shards' beginning and end.

    fn welcome(&mut self, shard: usize) {
        if self.shards.is_ready(shard)
            && let Some(greeting) = self.greeting.take()
        {
            print(&greeting);
        }
        self.tell_ready(None);
    }

    /// Makes the shards end. Asked twice, the harder way counts.
    fn leave(&mut self, then: Then, pressure: Pressure) {
        if let Phase::Leaving { pressure: Pressure::Close | Pressure::Exit, .. } = self.phase
            && pressure == Pressure::Finish
        {
            return;
        }
        let status = match pressure {
            Pressure::Finish => "finishing what is under way",
            Pressure::Close | Pressure::Exit => "ending what is under way",
        };
        match then {
            Then::End => self.notifier.stopping(self.report, status),
            Then::Rest => self.notifier.status(self.report, status),
        }
        let until = match pressure {
            Pressure::Finish => {
                self.report.notice(format_args!("gracefully shutting down"));
                self.shards.tell(|| channel::Command::Quit);
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

    fn bury(&mut self, shard: usize, failure: Option<&str>) {
        let served = self.shards.has_ended(shard);
        let is_wanted = matches!(self.phase, Phase::Leaving { .. });
        if failure.is_some() || !is_wanted {
            let reason = failure.unwrap_or("it was not told to");
            self.report.say(Level::Alert, format_args!("shard {shard} exited: {reason}"));
        }
        // Others go on without it; one that could not even start spoils the start.
        if !is_wanted && (!served || self.shards.are_ended()) {
            self.has_failed = true;
            self.leave(Then::End, Pressure::Exit);
        }
        self.complete_reload();
        self.go_on_if_all_ended();
    }

    fn go_on_if_all_ended(&mut self) {
        if let Phase::Leaving { then, .. } = self.phase
            && self.shards.are_ended()
        {
            self.phase = match then {
                Then::End => Phase::Over,
                Then::Rest => {
                    // A reload opens everything anew.
                    self.listening.shut_down();
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
    Shards::start(listening.shards(), common, config, listening, say)
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
    OpenOptions::new().append(true).open(path)
}
