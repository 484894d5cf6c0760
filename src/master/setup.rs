//! From the command line to a configuration that can be used: read, its files there, its user known.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::failure::{Failure, said};
use super::report::Report;
use crate::error_log::{Destination, Files, LogFile};
use crate::http::server::Http;
use crate::modules::{self, Config, LoadOptions, Loaded};
use crate::options::Options;
use crate::os::{self, Identity, UnknownIdentity};

/// What the configuration is read from, again at each reload.
pub fn load_options(options: &Options) -> LoadOptions {
    LoadOptions {
        file: options.configuration.clone(),
        prefix: options.prefix.clone(),
        globals: options.directives.as_ref().map(|text| text.to_string_lossy().into_owned()),
        error_log: Some(match &options.error_log {
            Destination::File(path) => path.clone(),
            Destination::Stderr | Destination::Syslog(_) => PathBuf::from("stderr"),
        }),
    }
}

/// The same options, valid from any directory: the process may go to another one
/// (`working_directory`) and is to find its files again.
pub fn absolute(mut options: Options) -> Result<Options, Failure> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(Failure::call("getcwd"));
    options.prefix = absolute(&options.prefix)?;
    options.configuration = absolute(&options.configuration)?;
    if let Destination::File(path) = &options.error_log {
        options.error_log = Destination::File(absolute(path)?);
    }
    Ok(options)
}

/// Reads the configuration and passes on what was said about it.
pub fn load(options: &LoadOptions, report: &Report) -> Result<Loaded, Failure> {
    let (loaded, warnings) = match modules::load(options) {
        Ok(mut loaded) => {
            let warnings = std::mem::take(&mut loaded.warnings);
            (Ok(loaded), warnings)
        }
        Err(failed) => (Err(Failure::Configuration(failed.error)), failed.warnings),
    };
    for warning in &warnings {
        report.say(warning.level, format_args!("{}", said(warning)));
    }
    loaded
}

/// Whom to serve as. Only root can choose.
pub fn identity(config: &Config) -> Result<Option<Identity>, UnknownIdentity> {
    if !os::started_by_root() {
        return Ok(None);
    }
    let found = match config.process.user.get() {
        Some(user) => Identity::find(&user.name, user.group.as_deref()),
        None => Identity::nobody(),
    };
    found.map(Some)
}

/// Makes the temporary directories, for `owner` if there is one to be.
pub fn make_temporary_directories(
    config: &Config,
    owner: Option<&Identity>,
) -> Result<(), Failure> {
    let Some(http) = &config.http else { return Ok(()) };
    for path in temporary_directories(http) {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Failure::path("mkdir", path)(e));
            }
            _ => {}
        }
        if let Some(owner) = owner {
            give(path, owner)?;
        }
    }
    Ok(())
}

/// Those of all levels, each once.
fn temporary_directories(http: &Http) -> Vec<&Path> {
    let mut paths = Vec::new();
    for location in &http.locations {
        let settings = &location.settings;
        let directories = [
            &settings.core.client_body_temp_path,
            &settings.proxy.exchange.temp_path,
            &settings.uwsgi.exchange.temp_path,
        ];
        paths
            .extend(directories.iter().filter_map(|setting| setting.get()).map(|temp| &*temp.path));
    }
    paths.sort_unstable();
    paths.dedup();
    paths
}

fn give(path: &Path, owner: &Identity) -> Result<(), Failure> {
    let metadata = fs::metadata(path).map_err(Failure::path("stat", path))?;
    if metadata.uid() == owner.user {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(owner.user), None).map_err(|source| Failure::Chown {
        path: path.to_owned(),
        user: owner.user,
        source,
    })
}

/// Opens every log of a configuration, first those that it names, in their order. As long as the result
/// lives, shards get these very files, though they may not be allowed to open them any more.
pub fn open_logs(config: &Config, files: &Files) -> Result<Vec<Arc<LogFile>>, Failure> {
    let error_logs =
        config.process.error_log.iter().filter_map(|target| match &target.destination {
            Destination::File(path) => Some(path),
            Destination::Stderr | Destination::Syslog(_) => None,
        });
    let access_logs = config.http.iter().flat_map(|http| &http.log_files).map(|file| &file.path);
    // What a level inherits is named further out, or is of the whole process.
    let paths = config.named_logs.iter().chain(error_logs).chain(access_logs);
    paths.map(|path| files.open(path).map_err(Failure::Open)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options;

    #[test]
    fn options_are_what_is_loaded() {
        let parsed = options::parse(["ringx", "-p", "/srv/", "-g", "daemon off;"]).unwrap();
        let load = load_options(&parsed);
        assert_eq!(load.file, Path::new("/srv/conf/ringx.conf"));
        assert_eq!(load.globals.as_deref(), Some("daemon off;"));
        assert_eq!(load.error_log.as_deref(), Some(Path::new("/srv/logs/error.log")));
        let parsed = options::parse(["ringx", "-e", "stderr"]).unwrap();
        assert_eq!(load_options(&parsed).error_log.as_deref(), Some(Path::new("stderr")));
    }

    #[test]
    fn relative_paths_are_made_absolute() {
        let here = std::env::current_dir().unwrap();
        let parsed = options::parse(["ringx", "-p", "x", "-e", "stderr"]).unwrap();
        let parsed = absolute(parsed).unwrap();
        assert_eq!(parsed.prefix, here.join("x"));
        assert_eq!(parsed.configuration, here.join("x/conf/ringx.conf"));
        assert_eq!(parsed.error_log, Destination::Stderr);
    }
}
