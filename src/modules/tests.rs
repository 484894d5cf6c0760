//! Whole configurations: what they become, and the words for what is wrong with them.

use std::collections::HashSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::directive::{Action, Directive, Support};
use crate::config::tree::memory::Memory;

fn options() -> LoadOptions {
    LoadOptions { file: "/c/x.conf".into(), prefix: "/p".into(), globals: None, error_log: None }
}

fn load_text(text: &str) -> Result<Loaded, Failed> {
    load_from(&options(), &Memory::of(&[("/c/x.conf", text)]))
}

fn http_of(text: &str) -> Http {
    let text = format!("events {{ }} http {{ {text} }}");
    match load_text(&text) {
        Ok(loaded) => loaded.config.http.unwrap(),
        Err(failed) => panic!("{text}: {}", failed.error),
    }
}

/// The error a configuration is refused with.
fn error(text: &str) -> String {
    match load_text(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(failed) => failed.error.to_string(),
    }
}

/// The first warning of a configuration that is accepted.
fn warning(text: &str) -> String {
    match load_text(text) {
        Ok(loaded) => {
            let warning = loaded.warnings.iter().find(|w| w.level == Level::Warn);
            warning.map(ToString::to_string).unwrap_or_default()
        }
        Err(failed) => panic!("{text}: {}", failed.error),
    }
}

/// Within `http`, which begins on line 2.
fn in_http(text: &str) -> String {
    format!("events {{}}\nhttp {{\n{text}\n}}\n")
}

/// Within `server` on line 4.
fn in_server(text: &str) -> String {
    in_http(&format!("server {{\n{text}\n}}"))
}

/// Within `location /` on line 5.
fn in_location(text: &str) -> String {
    in_server(&format!("location / {{\n{text}\n}}"))
}

#[test]
fn the_examples_load() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    for name in ["ringx.conf", "examples/websocket.conf", "examples/uwsgi.conf"] {
        let options = LoadOptions { file: conf.join(name), ..options() };
        match load(&options) {
            Ok(loaded) => assert_eq!(loaded.warnings, [], "{name}"),
            Err(failed) => panic!("{name}: {}", failed.error),
        }
    }
}
