//! Tells the binary which compiler built it, for `ringx -V`.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=scripts/build.rs");
    println!("cargo:rerun-if-env-changed=RINGX_PREFIX");

    let version = env::var_os("RUSTC")
        .and_then(|rustc| Command::new(rustc).arg("--version").output().ok())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_default();
    let version = match version.trim() {
        "" => "rustc",
        version => version,
    };
    println!("cargo:rustc-env=RINGX_COMPILER={version}");
}
