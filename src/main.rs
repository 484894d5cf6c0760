//! argv to exit code.

use std::process::ExitCode;

use ringx::{master, options};

fn main() -> ExitCode {
    match options::parse(std::env::args_os()) {
        Ok(options) => master::run(options),
        Err(error) => {
            eprintln!("nginx: {error}");
            ExitCode::FAILURE
        }
    }
}
