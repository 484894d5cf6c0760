//! The core module: the process, its shards, its files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Build;
use crate::config::diagnostic::{Fault, Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, Own, Setting, inherit};
use crate::config::value::{Args, choice, number, offset};
use crate::error_log::{Destination, Level, Target};
use crate::os::Identity;
use crate::syslog::Server;

/// What stands outside of all blocks.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub daemon: Setting<bool>,
    pub master_process: Setting<bool>,
    pub user: Own<User>,
    /// How many shards; at least one.
    pub worker_processes: Setting<usize>,
    pub worker_cpu_affinity: Own<CpuAffinity>,
    /// Nice value.
    pub worker_priority: Setting<i32>,
    pub worker_rlimit_nofile: Own<u64>,
    /// Bytes.
    pub worker_rlimit_core: Own<u64>,
    pub worker_shutdown_timeout: Own<Duration>,
    /// How often shards compare their tunnels; `None`: never.
    pub tunnel_rebalance: Setting<Option<Duration>>,
    pub working_directory: Own<PathBuf>,
    /// `NAME` or `NAME=value`, in the order written.
    pub env: List<String>,
    /// Absolute.
    pub pid: Setting<PathBuf>,
    /// Never empty once loaded.
    pub error_log: List<Target>,
}

/// `user name [group];`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// `None`: the group with the user's name.
    pub group: Option<String>,
}

/// `worker_cpu_affinity`: a set of CPUs for each shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuAffinity {
    /// One CPU each, out of the given ones or all available.
    Auto(Option<Cpus>),
    /// The first mask for the first shard; the last one again for those beyond.
    Masks(Vec<Cpus>),
}

/// CPU numbers, ascending.
pub type Cpus = Vec<usize>;

impl CpuAffinity {
    /// The CPUs of shard `index`, counted from 0; `available` are those the process may use.
    pub fn cpus(&self, index: usize, available: &[usize]) -> Cpus {
        let one_of = |cpus: &[usize]| {
            let at = index.checked_rem(cpus.len())?;
            cpus.get(at).copied()
        };
        match self {
            CpuAffinity::Masks(masks) => {
                masks.get(index).or(masks.last()).cloned().unwrap_or_default()
            }
            CpuAffinity::Auto(Some(cpus)) => one_of(cpus).into_iter().collect(),
            CpuAffinity::Auto(None) => one_of(available).into_iter().collect(),
        }
    }
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: daemon, master_process, worker_processes, worker_priority,
            tunnel_rebalance, pid, env, error_log);
    }

    /// `TZ` is kept without being named, as times are written in it.
    pub fn keep_time_zone(&mut self) {
        if !self.env.iter().any(|entry| entry == "TZ" || entry.starts_with("TZ=")) {
            self.env.push("TZ".to_owned());
        }
    }
}

const MAIN: Contexts = Contexts::MAIN;

/// `tunnel_rebalance on`, and the shortest time that can be asked for.
const TUNNEL_REBALANCE: Duration = Duration::from_secs(1);
const TUNNEL_REBALANCE_MIN: Duration = Duration::from_millis(100);

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("daemon", MAIN, Count::Exactly(1))
        .syntax("on | off")
        .default("on")
        .doc("Whether to go on in the background.")
        .set(|b, args| args.fill(&mut b.process.daemon, Args::flag)),
    Directive::new("env", MAIN, Count::Exactly(1))
        .syntax("variable[=value]")
        .default("TZ")
        .doc("A variable of the environment to set, or to keep.")
        .differs("those that are not named are not removed")
        .set(|b, args| b.process.env.add(args.at(0).to_owned())),
    Directive::new("error_log", MAIN, Count::AtLeast(1))
        .syntax("file | stderr | syslog:server=address[,parameter=value] [level]")
        .doc(
            "Where errors of the given level and above are written; `logs/error.log` and `error` \
              when absent. Several may be given.",
        )
        .set(|b, args| {
            let target = error_log(b, args)?;
            b.process.error_log.add(target)
        }),
    Directive::new("events", MAIN, Count::Exactly(0))
        .doc("The block of directives about connections; must be there, may be empty.")
        .block(
            Contexts::EVENTS,
            |b, args| {
                if std::mem::replace(&mut b.blocks.events, true) {
                    return Err(args.duplicate());
                }
                Ok(())
            },
            |_, _| Ok(()),
        ),
    Directive::new("include", Contexts::ANY, Count::Exactly(1))
        .syntax("file | pattern")
        .doc("Reads other files at this place; relative to the directory of the main file.")
        // The tree has put the files in the place of the statement.
        .set(|_, _| Ok(())),
    Directive::new("master_process", MAIN, Count::Exactly(1))
        .syntax("on | off")
        .default("on")
        .doc("Whether there is a master beside the shards.")
        .differs("master and shards are threads of one process either way.")
        .set(|b, args| args.fill(&mut b.process.master_process, Args::flag)),
    Directive::new("pid", MAIN, Count::Exactly(1))
        .syntax("file")
        .default("logs/nginx.pid")
        .doc("The file that holds the process number, relative to the prefix.")
        .set(|b, args| {
            let path = b.path(args.at(0));
            args.fill(&mut b.process.pid, |_| Ok(path))
        }),
    Directive::new("user", MAIN, Count::Between(1, 2))
        .syntax("user [group]")
        .doc(
            "Who to be once the listening sockets are open; the group has the user's name when \
              not given.",
        )
        .set(|b, args| {
            b.process.user.expect_unset(args)?;
            if !crate::os::started_by_root() {
                b.warn(
                    Some(args.place()),
                    "the \"user\" directive makes sense only if the master process runs with \
                     super-user privileges, ignored",
                );
                return Ok(());
            }
            let group = args.all().get(1).map(String::as_str);
            Identity::find(args.at(0), group).map_err(|error| Fault::new(error.to_string()))?;
            b.process
                .user
                .set(User { name: args.at(0).to_owned(), group: args.all().get(1).cloned() });
            Ok(())
        }),
    Directive::new("worker_cpu_affinity", MAIN, Count::AtLeast(1))
        .syntax("mask ... | auto [mask]")
        .doc("The CPUs of each shard; the rightmost digit of a mask is CPU 0.")
        .set(|b, args| {
            b.process.worker_cpu_affinity.expect_unset(args)?;
            b.process.worker_cpu_affinity.set(cpu_affinity(args)?);
            Ok(())
        }),
    Directive::new("worker_priority", MAIN, Count::Exactly(1))
        .syntax("number")
        .default("0")
        .doc("The nice value of the shards.")
        .set(|b, args| args.fill(&mut b.process.worker_priority, worker_priority)),
    Directive::new("worker_processes", MAIN, Count::Exactly(1))
        .syntax("number | auto")
        .default("auto")
        .doc("How many shards there are; `auto` is one for each available CPU.")
        .differs("the default is `auto`, not 1, and each is a thread.")
        .set(|b, args| args.fill(&mut b.process.worker_processes, worker_processes)),
    Directive::new("worker_rlimit_core", MAIN, Count::Exactly(1))
        .syntax("size")
        .doc("The largest core file.")
        .set(|b, args| {
            b.process.worker_rlimit_core.expect_unset(args)?;
            let size = offset(args.at(0)).ok_or_else(|| args.invalid_value())?;
            b.process.worker_rlimit_core.set(size);
            Ok(())
        }),
    Directive::new("worker_rlimit_nofile", MAIN, Count::Exactly(1))
        .syntax("number")
        .doc("How many descriptors may be open.")
        .set(|b, args| {
            b.process.worker_rlimit_nofile.expect_unset(args)?;
            b.process.worker_rlimit_nofile.set(args.number64()?);
            Ok(())
        }),
    Directive::new("worker_shutdown_timeout", MAIN, Count::Exactly(1))
        .syntax("time")
        .doc("How long a graceful shutdown waits before it closes what is left.")
        .set(|b, args| {
            b.process.worker_shutdown_timeout.expect_unset(args)?;
            b.process.worker_shutdown_timeout.set(args.time()?);
            Ok(())
        }),
    Directive::new("tunnel_rebalance", MAIN, Count::Exactly(1))
        .syntax("on | off | time")
        .default("on")
        .doc(
            "How often shards compare the numbers of their tunnels, and the bytes that they move (`on`: \
             every second). One that holds clearly more than its share gives tunnels away, those first \
             that have been quiet longest. One that moves clearly more bytes than the others, over \
             several of these times and when all together move more than 32 MiB per second, gives \
             quiet ones away and keeps the busy ones. Who is at their ends does not notice. An idle \
             upstream connection that a shard has not needed for this time is lent to whichever \
             would otherwise connect.",
        )
        .differs("nginx does not have it.")
        .set(|b, args| {
            args.fill(&mut b.process.tunnel_rebalance, |args| {
                Ok(match args.at(0) {
                    "on" => Some(TUNNEL_REBALANCE),
                    "off" => None,
                    _ => Some(args.time()?.max(TUNNEL_REBALANCE_MIN)),
                })
            })
        }),
    Directive::new("working_directory", MAIN, Count::Exactly(1))
        .syntax("directory")
        .doc("The current directory, where core files go.")
        .set(|b, args| {
            b.process.working_directory.expect_unset(args)?;
            b.process.working_directory.set(args.at(0).into());
            Ok(())
        }),
    Directive::no_effect("debug_points", MAIN, Count::Exactly(1), "there are no debug points")
        .set(|_, args| choice(args.at(0), &[("stop", ()), ("abort", ())])),
    Directive::no_effect("lock_file", MAIN, Count::Exactly(1), "shards take no lock to accept"),
    Directive::no_effect("pcre_jit", MAIN, Count::Exactly(1), "PCRE is not used")
        .set(|_, args| args.flag().map(drop)),
    Directive::no_effect("timer_resolution", MAIN, Count::Exactly(1), "timers are the ring's")
        .set(|_, args| args.time().map(drop)),
    Directive::no_effect("thread_pool", MAIN, Count::Between(2, 3), "there are no thread pools")
        .set(|_, args| thread_pool(args)),
    Directive::refused("load_module", "there are no dynamic modules"),
    Directive::refused("ssl_engine", "there is no TLS"),
    Directive::refused("ssl_object_cache_inheritable", "there is no TLS"),
];

/// The arguments of `error_log`, on any level.
pub fn error_log(b: &mut Build, args: Args<'_>) -> Outcome<Target> {
    let destination = match args.at(0) {
        // A file without a name is this one too.
        "stderr" | "" => Destination::Stderr,
        name if name.starts_with("syslog:") => {
            let parameters = name.strip_prefix("syslog:").unwrap_or_default();
            Destination::Syslog(Arc::new(Server::parse(parameters).map_err(Fault::new)?))
        }
        name if name.starts_with("memory:") => {
            return fault!("nginx was built without debug support");
        }
        name => Destination::File(b.log_path(name)),
    };
    Ok(Target { destination, level: error_log_level(args)? })
}

/// A level, or any number of debug's parts.
fn error_log_level(args: Args<'_>) -> Outcome<Level> {
    let mut level = None;
    for word in args.from(1) {
        let Some(named) = Level::from_name(word) else {
            return fault!("invalid log level \"{word}\"");
        };
        let is_part = word.starts_with("debug_");
        match level {
            None => level = Some((named, is_part)),
            Some((_, true)) if is_part => {}
            Some(_) if is_part => return fault!("invalid log level \"{word}\""),
            Some(_) => return fault!("duplicate log level \"{word}\""),
        }
    }
    Ok(level.map_or(Level::Error, |(level, _)| level))
}

fn thread_pool(args: Args<'_>) -> Outcome {
    let mut has_threads = false;
    for parameter in args.from(1) {
        if let Some(count) = parameter.strip_prefix("threads=") {
            if number(count).is_none_or(|count| count == 0) {
                return fault!("invalid threads value \"{parameter}\"");
            }
            has_threads = true;
        } else if let Some(count) = parameter.strip_prefix("max_queue=")
            && number(count).is_none()
        {
            return fault!("invalid max_queue value \"{parameter}\"");
        }
    }
    if has_threads || args.at(0) == "default" {
        return Ok(());
    }
    fault!("\"thread_pool\" must have \"threads\" parameter")
}

fn worker_processes(args: Args<'_>) -> Outcome<usize> {
    if args.at(0) == "auto" {
        return Ok(std::thread::available_parallelism().map_or(1, usize::from));
    }
    let count = number(args.at(0)).ok_or_else(|| args.invalid_value())?;
    Ok(count.max(1))
}

fn worker_priority(args: Args<'_>) -> Outcome<i32> {
    let (is_negative, digits) = match args.at(0).strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, args.at(0).strip_prefix('+').unwrap_or(args.at(0))),
    };
    let value = number(digits).and_then(|value| i32::try_from(value).ok());
    let value = value.ok_or_else(|| args.invalid_number())?;
    Ok(if is_negative { 0_i32.saturating_sub(value) } else { value })
}

fn cpu_affinity(args: Args<'_>) -> Outcome<CpuAffinity> {
    match args.all() {
        [auto] if auto == "auto" => Ok(CpuAffinity::Auto(None)),
        [auto, mask] if auto == "auto" => Ok(CpuAffinity::Auto(Some(cpu_mask(mask)?))),
        [auto, ..] if auto == "auto" => {
            fault!("invalid number of arguments in \"worker_cpu_affinity\" directive")
        }
        masks => {
            let masks: Outcome<Vec<Cpus>> = masks.iter().map(|mask| cpu_mask(mask)).collect();
            Ok(CpuAffinity::Masks(masks?))
        }
    }
}

/// `0`, `1` and spaces; the rightmost digit is CPU 0.
fn cpu_mask(mask: &str) -> Outcome<Cpus> {
    /// What a `cpu_set_t` holds.
    const CPU_MAX: usize = 1024;
    if mask.len() > CPU_MAX {
        return fault!("\"worker_cpu_affinity\" supports up to {CPU_MAX} CPUs only");
    }
    let mut cpus = Cpus::new();
    let digits = mask.chars().filter(|c| *c != ' ');
    if let Some(other) = digits.clone().rev().find(|c| !matches!(c, '0' | '1')) {
        return fault!("invalid character \"{other}\" in \"worker_cpu_affinity\"");
    }
    for (cpu, digit) in digits.rev().enumerate() {
        if digit == '1' {
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_read_from_the_right() {
        assert_eq!(cpu_mask("0101"), Ok(vec![0, 2]));
        assert_eq!(cpu_mask("10 00"), Ok(vec![3]));
        assert!(cpu_mask("12").is_err());
    }

    #[test]
    fn shards_get_their_cpus() {
        let masks = CpuAffinity::Masks(vec![vec![0], vec![1, 2]]);
        assert_eq!(masks.cpus(0, &[]), [0]);
        assert_eq!(masks.cpus(5, &[]), [1, 2]);
        assert_eq!(CpuAffinity::Auto(None).cpus(3, &[4, 6]), [6]);
        assert_eq!(CpuAffinity::Auto(Some(vec![1, 3])).cpus(2, &[0]), [1]);
        assert!(CpuAffinity::Auto(None).cpus(0, &[]).is_empty());
    }
}
