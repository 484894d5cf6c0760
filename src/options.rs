//! The command line, as nginx takes it: options may be glued (`-tq`, `-pDIR`, `-squit`), and the
//! texts are nginx's own, so that scripts which grep go on working.
//!
//! ringx adds `--demo`, `--manual` and `-s upgrade`.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Arg, Parser};
use rustix::process;
use thiserror::Error;

use crate::error_log::Destination;

/// Where relative paths start when `-p` does not say. Chosen at build time by the environment
/// variable `RINGX_PREFIX`.
pub const DEFAULT_PREFIX: &str = match option_env!("RINGX_PREFIX") {
    Some(prefix) => prefix,
    None => "/usr/local/ringx/",
};
/// `-c`, under the prefix.
pub const DEFAULT_CONFIGURATION: &str = "conf/ringx.conf";
/// `-e`, under the prefix.
pub const DEFAULT_ERROR_LOG: &str = "logs/error.log";

/// What the command line says. Paths are joined to the prefix; they are as relative as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub command: Command,
    /// `-p`
    pub prefix: PathBuf,
    /// `-c`
    pub configuration: PathBuf,
    /// `-e`: the log until the configuration names another.
    pub error_log: Destination,
    /// `-g`: main-level directives, read before the file.
    pub directives: Option<OsString>,
}

/// What is to be done. Where several are asked for, the first of this list is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `--manual`: print conf/directives.md on stdout.
    Manual,
    /// `-t` or `-T`: read the configuration, try what it needs, say whether it is good.
    Test {
        /// `-v`, `-V` or `-h` was given too: its text comes first.
        banner: Option<Banner>,
        /// `-T`: print the files on stdout when they are good.
        dump: bool,
        /// `-q`: only warnings and errors.
        quiet: bool,
    },
    /// `-v`, `-V` or `-h` alone: print the text of [`banner`] on stderr.
    Show(Banner),
    /// `-s`: signal the master process.
    Signal(Signal),
    /// `--demo`: run the embedded upstreams and a configuration for them.
    Demo,
    Run,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Banner {
    /// `-v`
    Version,
    /// `-V`
    VersionLong,
    /// `-?`, `-h`
    Help,
}

/// The operand of `-s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Stop,
    Quit,
    Reopen,
    Reload,
    /// Start the new binary, and let the old one quit when that serves.
    Upgrade,
}

impl Signal {
    fn from_operand(operand: &str) -> Option<Self> {
        Some(match operand {
            "stop" => Self::Stop,
            "quit" => Self::Quit,
            "reopen" => Self::Reopen,
            "reload" => Self::Reload,
            "upgrade" => Self::Upgrade,
            _ => return None,
        })
    }

    /// The signal that the master process is sent.
    pub fn number(self) -> process::Signal {
        match self {
            Self::Stop => process::Signal::TERM,
            Self::Quit => process::Signal::QUIT,
            Self::Reopen => process::Signal::USR1,
            Self::Reload => process::Signal::HUP,
            Self::Upgrade => process::Signal::USR2,
        }
    }
}

/// Why the command line is refused: print it as `nginx: {error}` on stderr, exit with 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UsageError {
    /// A letter, a bare word, a long option, or `-s WORD`.
    #[error("invalid option: \"{0}\"")]
    InvalidOption(String),
    #[error("option \"-{0}\" requires directory name")]
    NoDirectoryName(char),
    #[error("option \"-{0}\" requires file name")]
    NoFileName(char),
    #[error("option \"-{0}\" requires parameter")]
    NoParameter(char),
}

/// Reads the command line, `argv[0]` included.
pub fn parse<I>(argv: I) -> Result<Options, UsageError>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let mut parser = Parser::from_iter(argv);
    // `-p=x` is a directory called `=x`, as with getopt.
    parser.set_short_equals(false);

    let mut asked = Asked::default();
    let mut prefix = None;
    let mut configuration = None;
    let mut error_log = None;
    let mut directives = None;

    while let Some(arg) = parser.next().map_err(|error| invalid_option(&error))? {
        match arg {
            Arg::Short('?' | 'h') => asked.banner = asked.banner.max(Some(Banner::Help)),
            Arg::Short('v') => asked.banner = asked.banner.max(Some(Banner::Version)),
            Arg::Short('V') => asked.banner = asked.banner.max(Some(Banner::VersionLong)),
            Arg::Short('t') => asked.test = true,
            Arg::Short('T') => (asked.test, asked.dump) = (true, true),
            Arg::Short('q') => asked.quiet = true,
            Arg::Short(letter @ 'p') => {
                prefix = Some(operand(&mut parser, UsageError::NoDirectoryName(letter))?);
            }
            Arg::Short(letter @ 'c') => {
                configuration = Some(operand(&mut parser, UsageError::NoFileName(letter))?);
            }
            Arg::Short(letter @ 'e') => {
                error_log = Some(operand(&mut parser, UsageError::NoFileName(letter))?);
            }
            Arg::Short(letter @ 'g') => {
                directives = Some(operand(&mut parser, UsageError::NoParameter(letter))?);
            }
            Arg::Short(letter @ 's') => {
                let operand = operand(&mut parser, UsageError::NoParameter(letter))?;
                let operand = operand.to_string_lossy();
                let signal = Signal::from_operand(&operand)
                    .ok_or_else(|| UsageError::InvalidOption(format!("-s {operand}")))?;
                asked.signal = Some(signal);
            }
            Arg::Long("demo") => asked.demo = true,
            Arg::Long("manual") => asked.manual = true,
            Arg::Short(letter) => return Err(UsageError::InvalidOption(letter.to_string())),
            Arg::Long(name) => return Err(UsageError::InvalidOption(format!("--{name}"))),
            Arg::Value(word) => {
                return Err(UsageError::InvalidOption(word.to_string_lossy().into_owned()));
            }
        }
    }

    let prefix = prefix.map_or_else(|| PathBuf::from(DEFAULT_PREFIX), PathBuf::from);
    Ok(Options {
        command: asked.command(),
        configuration: prefix.join(configuration.unwrap_or_else(|| DEFAULT_CONFIGURATION.into())),
        error_log: match error_log.unwrap_or_else(|| DEFAULT_ERROR_LOG.into()) {
            name if name == "stderr" || name.is_empty() => Destination::Stderr,
            name => Destination::File(prefix.join(name)),
        },
        prefix,
        directives,
    })
}

/// The options that decide what is done, before they are weighed against each other.
#[derive(Default)]
struct Asked {
    manual: bool,
    /// Help says the version first, and -V more than -v: the greatest that was asked for.
    banner: Option<Banner>,
    test: bool,
    dump: bool,
    quiet: bool,
    signal: Option<Signal>,
    demo: bool,
}

impl Asked {
    fn command(self) -> Command {
        let Self { manual, banner, test, dump, quiet, signal, demo } = self;
        match (banner, signal) {
            _ if manual => Command::Manual,
            (banner, _) if test => Command::Test { banner, dump, quiet },
            (Some(banner), _) => Command::Show(banner),
            (None, Some(signal)) => Command::Signal(signal),
            (None, None) if demo => Command::Demo,
            (None, None) => Command::Run,
        }
    }
}

/// The rest of a glued option, or the next argument whatever it looks like.
fn operand(parser: &mut Parser, missing: UsageError) -> Result<OsString, UsageError> {
    parser.value().map_err(|_| missing)
}

/// A long option with a value it does not take is the one thing left for the parser to refuse.
fn invalid_option(error: &lexopt::Error) -> UsageError {
    UsageError::InvalidOption(match error {
        lexopt::Error::UnexpectedValue { option, value } => {
            format!("{option}={}", value.to_string_lossy())
        }
        other => other.to_string(),
    })
}

/// The text of `-v`, `-V` or `-h`, for stderr. `ring_features` is what the kernel's ring was found
/// to have; it is said by `-V`.
pub fn banner(banner: Banner, ring_features: &str) -> String {
    match banner {
        Banner::Version => VERSION.to_owned(),
        Banner::VersionLong => format!(
            "{VERSION}built by {compiler}\nkernel ring features: {ring_features}\n\
             configure arguments: --prefix={prefix} --conf-path={conf} --error-log-path={log}\n",
            compiler = env!("RINGX_COMPILER"),
            prefix = DEFAULT_PREFIX.trim_end_matches('/'),
            conf = PathBuf::from(DEFAULT_PREFIX).join(DEFAULT_CONFIGURATION).display(),
            log = PathBuf::from(DEFAULT_PREFIX).join(DEFAULT_ERROR_LOG).display(),
        ),
        Banner::Help => format!("{VERSION}{}", help()),
    }
}

/// Scripts look for `nginx version: `; what follows it is the name and the version of ringx.
const VERSION: &str = concat!("nginx version: ringx/", env!("CARGO_PKG_VERSION"), "\n");

fn help() -> String {
    format!(
        "\
Usage: ringx [-?hvVtTq] [-s signal] [-p prefix]
             [-e filename] [-c filename] [-g directives]
             [--demo] [--manual]

Options:
  -?,-h         : this help
  -v            : show version and exit
  -V            : show version and configure options then exit
  -t            : test configuration and exit
  -T            : test configuration, dump it and exit
  -q            : suppress non-error messages during configuration testing
  -s signal     : send signal to a master process: stop, quit, reopen, reload
  -s upgrade    : start the new binary, then quit the process that runs
  -p prefix     : set prefix path (default: {DEFAULT_PREFIX})
  -e filename   : set error log file (default: {DEFAULT_ERROR_LOG})
  -c filename   : set configuration file (default: {DEFAULT_CONFIGURATION})
  -g directives : set global directives out of configuration file
  --demo        : run a WebSocket and a uwsgi server and proxy to them
  --manual      : print the manual of all directives and exit

"
    )
}

/// Any command line is taken or refused, never worse; what is taken names a configuration under
/// the prefix.
pub fn fuzz_options(data: &[u8]) {
    use std::os::unix::ffi::OsStringExt;

    let words = data.split(|&byte| byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    match parse(std::iter::once(OsString::from("ringx")).chain(words)) {
        Ok(options) => assert!(
            options.configuration.is_absolute()
                || options.configuration.starts_with(&options.prefix)
        ),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn parsed(line: &str) -> Options {
        parse(line.split_whitespace()).unwrap()
    }

    fn refused(argv: &[&str]) -> String {
        parse(argv).unwrap_err().to_string()
    }

    #[test]
    fn defaults() {
        let options = parsed("ringx");
        assert_eq!(options.command, Command::Run);
        assert_eq!(options.configuration, PathBuf::from(DEFAULT_PREFIX).join("conf/ringx.conf"));
        assert_eq!(
            options.error_log,
            Destination::File(PathBuf::from(DEFAULT_PREFIX).join("logs/error.log"))
        );
        assert_eq!(options.directives, None);
    }

    #[test]
    fn options_may_be_glued() {
        let options = parsed("ringx -tq -p/srv -ca.conf -estderr -gdaemon;");
        assert_eq!(options.command, Command::Test { banner: None, dump: false, quiet: true });
        assert_eq!(options.prefix, PathBuf::from("/srv"));
        assert_eq!(options.configuration, PathBuf::from("/srv/a.conf"));
        assert_eq!(options.error_log, Destination::Stderr);
        assert_eq!(options.directives, Some("daemon;".into()));
        assert_eq!(parsed("ringx -squit").command, Command::Signal(Signal::Quit));
        assert_eq!(parsed("ringx -s upgrade").command, Command::Signal(Signal::Upgrade));
        assert_eq!(parsed("ringx -tp /srv").prefix, PathBuf::from("/srv"));
        assert_eq!(parsed("ringx -p=x").prefix, PathBuf::from("=x"));
    }

    #[test]
    fn an_operand_may_look_like_an_option() {
        assert_eq!(parsed("ringx -c -t").configuration, PathBuf::from(DEFAULT_PREFIX).join("-t"));
    }

    #[test]
    fn absolute_paths_stay() {
        let options = parsed("ringx -p /srv -c /etc/a.conf -e /var/log/e.log");
        assert_eq!(options.configuration, PathBuf::from("/etc/a.conf"));
        assert_eq!(options.error_log, Destination::File("/var/log/e.log".into()));
    }

    #[test]
    fn what_is_done_when_several_are_asked_for() {
        let command = |line: &str| parsed(line).command;
        let test = |banner, dump| Command::Test { banner, dump, quiet: false };
        assert_eq!(command("ringx -Vt"), test(Some(Banner::VersionLong), false));
        assert_eq!(command("ringx -t -T"), test(None, true));
        assert_eq!(command("ringx -s stop -t"), test(None, false));
        assert_eq!(command("ringx -vV"), Command::Show(Banner::VersionLong));
        assert_eq!(command("ringx -?"), Command::Show(Banner::Help));
        assert_eq!(command("ringx -v -s stop"), Command::Show(Banner::Version));
        assert_eq!(command("ringx --demo"), Command::Demo);
        assert_eq!(command("ringx --manual -t"), Command::Manual);
        assert_eq!(command("ringx -q"), Command::Run);
    }

    #[test]
    fn refusals() {
        assert_eq!(refused(&["ringx", "-tx"]), "invalid option: \"x\"");
        assert_eq!(refused(&["ringx", "foo"]), "invalid option: \"foo\"");
        assert_eq!(refused(&["ringx", "-s", "foo"]), "invalid option: \"-s foo\"");
        assert_eq!(refused(&["ringx", "-p"]), "option \"-p\" requires directory name");
        assert_eq!(refused(&["ringx", "-c"]), "option \"-c\" requires file name");
        assert_eq!(refused(&["ringx", "-te"]), "option \"-e\" requires file name");
        assert_eq!(refused(&["ringx", "-g"]), "option \"-g\" requires parameter");
        assert_eq!(refused(&["ringx", "-s"]), "option \"-s\" requires parameter");
        assert_eq!(refused(&["ringx", "--foo"]), "invalid option: \"--foo\"");
        assert_eq!(refused(&["ringx", "--demo=1"]), "invalid option: \"--demo=1\"");
    }

    #[test]
    fn the_texts() {
        let version = concat!("nginx version: ringx/", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(banner(Banner::Version, ""), version);
        let long = banner(Banner::VersionLong, "SINGLE_MMAP");
        assert!(long.starts_with(&format!("{version}built by rustc")));
        assert!(long.contains("\nkernel ring features: SINGLE_MMAP\n"));
        let help = banner(Banner::Help, "");
        assert!(help.starts_with(&format!(
            "{version}Usage: ringx [-?hvVtTq] [-s signal] [-p prefix]\n             [-e filename]"
        )));
        assert!(help.contains("(default: conf/ringx.conf)\n"));
        assert!(help.ends_with("\n\n"));
    }

    proptest! {
        #[test]
        fn any_command_line(data in vec(any::<u8>(), 0..60)) {
            fuzz_options(&data);
        }

        #[test]
        fn any_options(words in vec("-[?hvVtTqpcegs=]{1,3}|--demo|stop|upgrade", 0..5)) {
            fuzz_options(words.join("\0").as_bytes());
        }
    }
}
