//! What the service manager is told: systemd's `sd_notify(3)`, which is a datagram of `NAME=value`
//! lines, and its watchdog, `sd_watchdog_enabled(3)`. Without a manager nothing of it happens.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use super::report::Report;
use crate::error_log::{Errno, Level};
use crate::io::timer;
use crate::os;

/// The way to the service manager, and what it knows.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<Manager>,
    watchdog: Option<Watchdog>,
    told: Told,
    /// Another process is the service now: what this one does is not what the service does.
    is_silent: bool,
    /// Telling has failed, and that has been said.
    has_failed: bool,
    /// The manager's variables, for a process that takes over.
    environment: Vec<(&'static str, OsString)>,
}

#[derive(Debug)]
struct Manager {
    /// Kept open: pings go on when there are no descriptors.
    socket: UnixDatagram,
    address: SocketAddr,
}

/// What the manager was told last.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Ready,
    Reloading,
    Stopping,
}

/// How long the manager may keep the master waiting.
const PATIENCE: Duration = Duration::from_secs(5);
/// The watchdog's interval while a configuration is read: that may wait for name servers, and the
/// shards go on serving meanwhile.
const LOAD_INTERVAL: Duration = Duration::from_secs(600);
/// No status has more characters.
const STATUS_MAX: usize = 300;

impl Notifier {
    /// Takes the manager's variables out of the environment: no child has them unasked.
    ///
    /// To be called before there is a second thread: others may be reading the environment.
    pub fn from_environment() -> Self {
        let [socket, interval, pid] =
            ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"].map(os::take_variable);
        let Some(socket) = socket.filter(|name| !name.is_empty()) else {
            return Notifier::default();
        };
        let manager = match Manager::new(&socket) {
            Ok(manager) => manager,
            Err(error) => {
                let (name, error) = (socket.display(), Errno::of(&error));
                eprintln!("nginx: [warn] the notify socket \"{name}\" cannot be used ({error})");
                return Notifier::default();
            }
        };
        let watched = interval.as_deref().filter(|_| is_for(std::process::id(), pid.as_deref()));
        let watchdog = watched.and_then(interval_of).map(Watchdog::new);
        let mut environment = vec![("NOTIFY_SOCKET", socket)];
        // Without a process number they are for whoever is started with them.
        environment.extend(interval.map(|interval| ("WATCHDOG_USEC", interval)));
        Notifier { manager: Some(manager), watchdog, environment, ..Notifier::default() }
    }

    /// Whether there is one to tell.
    pub fn has_manager(&self) -> bool {
        self.manager.is_some()
    }

    /// What a process that is to take the service over must find in its environment.
    pub fn environment(&self) -> impl Iterator<Item = (&'static str, &OsStr)> {
        self.environment.iter().map(|(name, value)| (*name, value.as_os_str()))
    }

    /// How often each shard is to show that it runs.
    pub fn beats(&self) -> Option<Duration> {
        self.watchdog.as_ref().map(|watchdog| watchdog.part(8))
    }

    /// The shards serve what was loaded last. Told once for the start and for each reload.
    pub fn ready(&mut self, report: &Report, status: fmt::Arguments<'_>) {
        if !matches!(self.told, Told::Nothing | Told::Reloading) {
            return;
        }
        self.told = Told::Ready;
        let pid = std::process::id();
        self.tell(report, &format!("READY=1\nMAINPID={pid}\nSTATUS={}", one_line(status)));
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.begin(Instant::now());
        }
    }

    /// A configuration is about to be read.
    pub fn reloading(&mut self, report: &Report) {
        if !matches!(self.told, Told::Ready | Told::Reloading) {
            return;
        }
        self.told = Told::Reloading;
        let now = timer::now_precise().as_micros();
        let mut lines =
            format!("RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=reading the configuration");
        if let Some(watchdog) = &self.watchdog {
            let interval = watchdog.interval.max(LOAD_INTERVAL).as_micros();
            lines = format!("{lines}\nWATCHDOG_USEC={interval}");
        }
        self.tell(report, &lines);
    }

    /// It has been read, successfully or not: the watchdog is as strict as before.
    pub fn loaded(&mut self, report: &Report) {
        if self.told == Told::Reloading
            && let Some(watchdog) = &mut self.watchdog
        {
            // That counts from now, as a ping does.
            watchdog.begin(Instant::now());
            let interval = watchdog.interval.as_micros();
            self.tell(report, &format!("WATCHDOG_USEC={interval}"));
        }
    }

    /// The end has begun.
    pub fn stopping(&mut self, report: &Report, status: &str) {
        if self.told == Told::Stopping {
            return self.status(report, status);
        }
        self.told = Told::Stopping;
        self.tell(report, &format!("STOPPING=1\nSTATUS={status}"));
    }

    /// A line for people.
    pub fn status(&mut self, report: &Report, status: &str) {
        self.tell(report, &format!("STATUS={status}"));
    }

    /// Which process the service is. While it is another than this one, that one does the telling.
    pub fn main_pid(&mut self, report: &Report, pid: u32) {
        self.is_silent = false;
        let is_own = pid == std::process::id();
        // The end may have begun while another process was the service.
        let end = if is_own && self.told == Told::Stopping { "\nSTOPPING=1" } else { "" };
        self.tell(report, &format!("MAINPID={pid}{end}"));
        self.is_silent = !is_own;
    }

    /// The service is the process's again that had it before; it tells what follows. Whoever has not
    /// served has never been the service.
    pub fn hand_back(&mut self, report: &Report, pid: u32) {
        if self.told != Told::Nothing {
            self.main_pid(report, pid);
        }
        self.is_silent = true;
    }

    /// When [`Notifier::ping`] is to be called next.
    pub fn next_ping(&self) -> Option<Instant> {
        self.watchdog.as_ref().and_then(|watchdog| watchdog.next)
    }

    /// Feeds the watchdog if that is due and all shards run; `find_silent` names one that has not
    /// shown itself for as long as it is told.
    pub fn ping(
        &mut self,
        now: Instant,
        report: &Report,
        find_silent: impl FnOnce(Duration) -> Option<usize>,
    ) {
        let Some(watchdog) = &mut self.watchdog else { return };
        if watchdog.next.is_none_or(|next| now < next) {
            return;
        }
        match watchdog.look(now, find_silent) {
            Verdict::Ping => self.tell(report, "WATCHDOG=1"),
            Verdict::Withhold { shard, is_news: true } => {
                let text = format_args!("shard {shard} does not run, the watchdog is not told");
                report.say(Level::Alert, text);
                self.status(report, &format!("shard {shard} does not run"));
            }
            Verdict::Withhold { is_news: false, .. } => {}
        }
    }

    fn tell(&mut self, report: &Report, message: &str) {
        let Some(manager) = self.manager.as_ref().filter(|_| !self.is_silent) else { return };
        let sent = manager.socket.send_to_addr(message.as_bytes(), &manager.address);
        if let Err(error) = &sent
            && !self.has_failed
        {
            let text = format_args!("the service manager was not told ({})", Errno::of(error));
            report.say(Level::Warn, text);
        }
        self.has_failed = sent.is_err();
    }
}

impl Manager {
    fn new(name: &OsStr) -> io::Result<Self> {
        let address = address_of(name)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Manager { socket, address })
    }
}

/// `/path`, or `@name` in the abstract namespace.
fn address_of(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name),
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        // `vsock:` is for the first process of a machine.
        _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    }
}

/// The value of `WATCHDOG_USEC`, if it asks for anything.
fn interval_of(value: &OsStr) -> Option<Duration> {
    let microseconds: u64 = value.to_str()?.parse().ok()?;
    // The manager itself has no use for the greatest number.
    (microseconds > 0 && microseconds < u64::MAX).then(|| Duration::from_micros(microseconds))
}

/// `WATCHDOG_PID` keeps a child from being watched for its parent.
fn is_for(own: u32, pid: Option<&OsStr>) -> bool {
    pid.is_none_or(|pid| pid.to_str().and_then(|pid| pid.parse().ok()) == Some(own))
}

/// A line feed would begin another variable.
fn one_line(status: fmt::Arguments<'_>) -> String {
    let text = status.to_string();
    let spaced = text.chars().map(|character| if character.is_control() { ' ' } else { character });
    spaced.take(STATUS_MAX).collect()
}

/// When to tell the manager that the process runs: at half the interval after which it would be
/// ended otherwise.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    /// `None`: the service is not ready, so nothing is watched yet.
    next: Option<Instant>,
    is_withheld: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ping,
    Withhold { shard: usize, is_news: bool },
}

impl Watchdog {
    fn new(interval: Duration) -> Self {
        Watchdog { interval, next: None, is_withheld: false }
    }

    fn begin(&mut self, now: Instant) {
        self.next = now.checked_add(self.part(2));
    }

    fn part(&self, divisor: u32) -> Duration {
        self.interval.checked_div(divisor).unwrap_or_default()
    }

    /// A shard that hung for a while and runs again is found before it is too late: who is late is
    /// looked at more often.
    fn look(
        &mut self,
        now: Instant,
        find_silent: impl FnOnce(Duration) -> Option<usize>,
    ) -> Verdict {
        let Some(shard) = find_silent(self.part(2)) else {
            self.is_withheld = false;
            self.begin(now);
            return Verdict::Ping;
        };
        self.next = now.checked_add(self.part(8));
        Verdict::Withhold { shard, is_news: !std::mem::replace(&mut self.is_withheld, true) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_log::{Destination, Files};

    /// A notifier, and the manager that it talks to.
    fn pair(name: &str, watchdog: Option<Watchdog>) -> (Notifier, UnixDatagram, Report) {
        let name = format!("@ringx-test-{}-{name}", std::process::id());
        let manager = Manager::new(OsStr::new(&name)).unwrap();
        let heard = UnixDatagram::bind_addr(&manager.address).unwrap();
        heard.set_nonblocking(true).unwrap();
        let environment = vec![("NOTIFY_SOCKET", name.into())];
        let manager = Some(manager);
        let notifier = Notifier { manager, watchdog, environment, ..Notifier::default() };
        (notifier, heard, Report::first(&Destination::Stderr, &Files::default()))
    }

    fn heard(manager: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| manager.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec()))
            .map(|message| String::from_utf8(message).unwrap())
            .collect()
    }

    fn first_lines(manager: &UnixDatagram) -> Vec<String> {
        let first = |message: &String| message.lines().next().unwrap().to_owned();
        heard(manager).iter().map(first).collect()
    }

    #[test]
    fn a_life_is_told_in_order_and_each_step_once() {
        let (mut notifier, manager, report) = pair("life", None);
        let pid = std::process::id();
        notifier.reloading(&report);
        notifier.ready(&report, format_args!("2 shards"));
        notifier.ready(&report, format_args!("again"));
        assert_eq!(heard(&manager), [format!("READY=1\nMAINPID={pid}\nSTATUS=2 shards")]);
        notifier.reloading(&report);
        let told = heard(&manager);
        let microseconds = told[0].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let microseconds: u128 = microseconds.lines().next().unwrap().parse().unwrap();
        let now = timer::now_precise().as_micros();
        assert!((now - 60_000_000..=now).contains(&microseconds), "{microseconds}, now {now}");
        notifier.loaded(&report);
        notifier.ready(&report, format_args!("bad\nSTOPPING=1"));
        assert_eq!(heard(&manager), [format!("READY=1\nMAINPID={pid}\nSTATUS=bad STOPPING=1")]);
        notifier.stopping(&report, "soon");
        notifier.stopping(&report, "now");
        notifier.ready(&report, format_args!("too late"));
        notifier.reloading(&report);
        assert_eq!(first_lines(&manager), ["STOPPING=1", "STATUS=now"]);
    }

    #[test]
    fn who_is_not_the_service_is_silent() {
        let (mut notifier, manager, report) = pair("main", None);
        notifier.ready(&report, format_args!(""));
        notifier.main_pid(&report, 1);
        notifier.stopping(&report, "");
        let successor: Vec<_> = notifier.environment().collect();
        assert!(matches!(successor[..], [("NOTIFY_SOCKET", name)] if name.len() > 1));
        let own = std::process::id();
        notifier.main_pid(&report, own);
        notifier.status(&report, "back");
        let told = first_lines(&manager);
        assert_eq!(told, ["READY=1", "MAINPID=1", &format!("MAINPID={own}"), "STATUS=back"]);
    }

    #[test]
    fn a_load_may_take_longer_than_the_watchdog_allows() {
        let watchdog = Watchdog::new(Duration::from_secs(4));
        let (mut notifier, manager, report) = pair("load", Some(watchdog));
        notifier.ready(&report, format_args!(""));
        notifier.reloading(&report);
        notifier.loaded(&report);
        let told = heard(&manager);
        assert!(told[1].ends_with("\nWATCHDOG_USEC=600000000"), "{}", told[1]);
        assert_eq!(told[2], "WATCHDOG_USEC=4000000");
    }

    #[test]
    fn the_watchdog_is_fed_while_every_shard_runs() {
        let (mut notifier, manager, report) =
            pair("watch", Some(Watchdog::new(Duration::from_secs(8))));
        assert_eq!(notifier.next_ping(), None, "not before it is ready");
        notifier.ready(&report, format_args!(""));
        notifier.ping(Instant::now(), &report, |_| panic!("it is not due"));
        for silent in [None, Some(3), Some(3), None] {
            let due = notifier.next_ping().unwrap();
            notifier.ping(due, &report, |limit| silent.filter(|_| limit == Duration::from_secs(4)));
        }
        let told = first_lines(&manager);
        assert_eq!(told, ["READY=1", "WATCHDOG=1", "STATUS=shard 3 does not run", "WATCHDOG=1"]);
    }

    #[test]
    fn who_is_late_is_looked_at_more_often() {
        let mut watchdog = Watchdog::new(Duration::from_secs(8));
        let now = Instant::now();
        let next = |watchdog: &Watchdog| watchdog.next.unwrap() - now;
        assert_eq!(watchdog.look(now, |_| None), Verdict::Ping);
        assert_eq!(next(&watchdog), Duration::from_secs(4));
        let late = |is_news| Verdict::Withhold { shard: 1, is_news };
        assert_eq!(watchdog.look(now, |_| Some(1)), late(true));
        assert_eq!(next(&watchdog), Duration::from_secs(1));
        assert_eq!(watchdog.look(now, |_| Some(1)), late(false));
        assert_eq!(watchdog.look(now, |_| None), Verdict::Ping);
        assert_eq!(watchdog.look(now, |_| Some(1)), late(true));
    }

    #[test]
    fn the_managers_variables() {
        assert!(address_of(OsStr::new("/run/notify")).unwrap().as_pathname().is_some());
        let name = address_of(OsStr::new("@name")).unwrap();
        assert_eq!(name.as_abstract_name(), Some(&b"name"[..]));
        for other in ["vsock:2:1234", "relative", "/with\0zero"] {
            assert!(address_of(OsStr::new(other)).is_err(), "{other}");
        }
        assert!(address_of(OsStr::new(&format!("/{}", "x".repeat(200)))).is_err());

        let interval = |value: &str| interval_of(OsStr::new(value));
        assert_eq!(interval("1500000"), Some(Duration::from_millis(1500)));
        for none in ["", "0", "-1", "1s", "18446744073709551615", "99999999999999999999"] {
            assert_eq!(interval(none), None, "{none}");
        }
        let is_for_7 = |pid: Option<&str>| is_for(7, pid.map(OsStr::new));
        assert!(is_for_7(None) && is_for_7(Some("7")));
        assert!(!is_for_7(Some("8")) && !is_for_7(Some("")) && !is_for_7(Some("x")));
    }

    #[test]
    fn a_status_is_one_short_line() {
        let long = "é".repeat(400);
        assert_eq!(one_line(format_args!("a\r\n\tb\0")), "a   b ");
        assert_eq!(one_line(format_args!("{long}")), "é".repeat(STATUS_MAX));
    }

    #[test]
    fn a_manager_that_is_gone_is_no_reason_to_fail() {
        let (mut notifier, manager, report) = pair("gone", None);
        drop(manager);
        notifier.ready(&report, format_args!(""));
        assert!(notifier.has_failed);
        assert_eq!(Notifier::default().beats(), None);
    }
}
