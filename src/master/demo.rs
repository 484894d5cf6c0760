//! `--demo`: ringx in front of the embedded upstreams, from a directory that is gone afterwards.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::notify::Notifier;
use super::upgrade::inherited::Inherited;
use super::{serve, signals};
use crate::demo::{self, Demo};
use crate::error_log::Destination;
use crate::options::Options;

pub fn run(options: Options) -> ExitCode {
    let inherited = Inherited::take();
    match prepare(options) {
        Ok((signals, demo, home, options)) => {
            let greeting = Some(demo::greeting(&demo));
            let code = serve(options, signals, Notifier::default(), inherited, greeting);
            drop(home);
            code
        }
        Err(error) => {
            eprintln!("nginx: [emerg] the demonstration cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn prepare(options: Options) -> io::Result<(crate::os::BlockedSignals, Demo, Home, Options)> {
    // Before the upstreams' threads run: Ctrl-C is for the master.
    let signals = signals::block()?;
    let demo = demo::start()?;
    let home = Home::create(&demo)?;
    let options = home.options(options);
    Ok((signals, demo, home, options))
}

/// The prefix of the demonstration. Removed when dropped.
struct Home(PathBuf);

impl Home {
    fn create(demo: &Demo) -> io::Result<Self> {
        let home = Home(new_directory()?);
        for name in ["conf", "logs", "html"] {
            fs::create_dir(home.0.join(name))?;
        }
        fs::write(home.configuration(), demo::configuration(demo))?;
        Ok(home)
    }

    fn configuration(&self) -> PathBuf {
        self.0.join("conf/ringx.conf")
    }

    /// What to serve; directives of `-g` (how many shards) still count.
    fn options(&self, given: Options) -> Options {
        let mut directives = std::ffi::OsString::from("daemon off; ");
        directives.push(given.directives.unwrap_or_default());
        Options {
            prefix: self.0.clone(),
            configuration: self.configuration(),
            error_log: Destination::Stderr,
            directives: Some(directives),
            ..given
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} was not removed: {error}", self.0.display());
        }
    }
}

/// A directory that was not there before. The name says whose it is; a number is added when an
/// earlier demonstration was killed and its directory is still there.
fn new_directory() -> io::Result<PathBuf> {
    const ATTEMPTS: u32 = 100;
    let name = format!("ringx-demo-{}", std::process::id());
    let first = std::env::temp_dir().join(&name);
    let others = (1..ATTEMPTS).map(|number| first.with_file_name(format!("{name}-{number}")));
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for path in std::iter::once(first.clone()).chain(others) {
        match create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn create(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options;

    #[test]
    fn a_home_with_a_configuration_that_goes_again() {
        let demo = Demo {
            websocket: "127.0.0.1:8800".parse().unwrap(),
            uwsgi: "127.0.0.1:7000".parse().unwrap(),
        };
        let home = Home::create(&demo).unwrap();
        let other = Home::create(&demo).unwrap();
        assert_ne!(home.0, other.0);
        let given = options::parse(["ringx", "--demo", "-g", "worker_processes 1;"]).unwrap();
        let options = home.options(given);
        assert_eq!(options.directives, Some("daemon off; worker_processes 1;".into()));
        let text = fs::read_to_string(&options.configuration).unwrap();
        assert!(text.contains("uwsgi_pass 127.0.0.1:7000;"));
        let path = home.0.clone();
        drop(home);
        assert!(!path.exists());
    }
}
