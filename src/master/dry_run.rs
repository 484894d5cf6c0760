//! `-t` and `-T`: does everything that a start does before it would serve, and leaves running
//! instances alone.

use std::io::{self, Write};
use std::process::ExitCode;

use super::failure::Failure;
use super::report::Report;
use super::{listening, pid_file, setup, shards};
use crate::error_log::Files;
use crate::modules::Loaded;
use crate::options::Options;

pub fn run(options: &Options, dump: bool, quiet: bool) -> ExitCode {
    let files = Files::default();
    let mut report = Report::first(&options.error_log, &files);
    let file = options.configuration.display();
    match try_out(options, quiet, &files, &mut report) {
        Ok(loaded) => {
            if !quiet {
                eprintln!("nginx: configuration file {file} test is successful");
            }
            if dump {
                // A reader that wants no more of it is no failure.
                let _ = print_files(&loaded, io::stdout().lock());
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            report.say(failure.level(), format_args!("{failure}"));
            eprintln!("nginx: configuration file {file} test failed");
            ExitCode::FAILURE
        }
    }
}

fn try_out(
    options: &Options,
    quiet: bool,
    files: &Files,
    report: &mut Report,
) -> Result<Loaded, Failure> {
    let loaded = setup::load(&setup::load_options(options), report)?;
    if !quiet {
        let file = options.configuration.display();
        eprintln!("nginx: the configuration file {file} syntax is ok");
    }
    let config = &loaded.config;
    pid_file::try_out(&config.process.pid)?;
    let owner = setup::identity(config)?;
    setup::make_temporary_directories(config, owner.as_ref())?;
    // Kept open while the last of the report is written to them.
    let _logs = setup::open_logs(config, files)?;
    report.follow(&config.process.error_log, files)?;
    listening::try_out_all(shards::addresses(config), report)?;
    Ok(loaded)
}

/// Each file once, in reading order, after a line with its name.
fn print_files(loaded: &Loaded, mut out: impl Write) -> io::Result<()> {
    for (path, text) in &loaded.files {
        writeln!(out, "# configuration file {}:\n{text}", path.display())?;
    }
    out.flush()
}
