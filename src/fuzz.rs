//! Every function that takes any bytes and checks what must hold of them, by name: for `scripts/fuzz`,
//! and for a test that runs each over the inputs kept under tests/corpus.

/// The name is that of the function, without its `fuzz_`, and that of a folder of tests/corpus.
pub struct Target {
    pub name: &'static str,
    /// Panics where something that must hold does not.
    pub run: fn(&[u8]),
}

/// By name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

macro_rules! targets {
    ($($name:literal $path:path,)*) => { &[$(Target { name: $name, run: $path }),*] };
}

pub const TARGETS: &[Target] = targets! {
    "address" crate::config::address::fuzz_address,
    "block_size" crate::uwsgi::fuzz_block_size,
    "chunked" crate::http1::chunked::fuzz_chunked,
    "cidr" crate::config::cidr::fuzz_cidr,
    "client_headers" crate::http::upstream::protocol::fuzz_client_headers,
    "conditional" crate::http::modules::static_files::fuzz_conditional,
    "content_length" crate::http1::framing::fuzz_content_length,
    "cookie" crate::http::modules::proxy::cookie::fuzz_cookie,
    "date" crate::http1::date::fuzz_date,
    "escape" crate::error_log::fuzz_escape,
    "expires" crate::http::modules::headers::fuzz_expires,
    "follow" crate::http::tunnel::frame::fuzz_follow,
    "forwarded" crate::http::modules::realip::fuzz_forwarded,
    "handover" crate::master::fuzz_handover,
    "handshake" crate::http::tunnel::handshake::fuzz_handshake,
    "host" crate::http1::host::fuzz_host,
    "inherited" crate::master::fuzz_inherited,
    "lexer" crate::config::lexer::fuzz_lexer,
    "load" crate::modules::fuzz_load,
    "match" crate::http::modules::health_check::fuzz_match,
    "options" crate::options::fuzz_options,
    "pace" crate::http::pace::fuzz_pace,
    "packet" crate::uwsgi::fuzz_packet,
    "pid" crate::master::fuzz_pid,
    "proxy_header" crate::proxy_protocol::fuzz_proxy_header,
    "range" crate::http::modules::static_files::fuzz_range,
    "reply" crate::resolver::message::fuzz_reply,
    "request" crate::http1::request::fuzz_request,
    "response" crate::http1::response::fuzz_response,
    "source" crate::http::modules::access::fuzz_source,
    "syslog" crate::syslog::fuzz_syslog,
    "template" crate::http::variable::fuzz_template,
    "trailer" crate::http1::trailer::fuzz_trailer,
    "tree" crate::config::tree::fuzz_tree,
    "uri" crate::http1::uri::fuzz_uri,
    "user_agent" crate::http::user_agent::fuzz_user_agent,
    "value" crate::config::value::fuzz_value,
};

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::catch_unwind;
    use std::path::{Path, PathBuf};

    use super::*;

    /// The files under a folder.
    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.append(&mut files(&path));
            } else {
                found.push(path);
            }
        }
        found
    }

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn the_table_holds_every_function() {
        let mut found = Vec::new();
        for file in files(&root().join("src")) {
            let text = fs::read_to_string(file).unwrap();
            for line in text.lines() {
                if let Some(rest) = line.trim_start().strip_prefix("pub fn fuzz_") {
                    found.push(rest.split('(').next().unwrap().to_owned());
                }
            }
        }
        found.sort();
        let named: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        assert_eq!(named, found);
    }

    /// Seeds and former findings: what was mended stays mended.
    #[test]
    fn the_corpus_is_taken() {
        let corpus = root().join("tests/corpus");
        let mut failed = Vec::new();
        for target in TARGETS {
            let inputs = files(&corpus.join(target.name));
            assert!(!inputs.is_empty(), "no seed for {}", target.name);
            for path in inputs {
                let data = fs::read(&path).unwrap();
                if catch_unwind(|| (target.run)(&data)).is_err() {
                    failed.push(path);
                }
            }
        }
        assert!(failed.is_empty(), "{failed:#?}");
        for entry in fs::read_dir(corpus).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(name.to_str().and_then(target).is_some(), "a corpus of no function: {name:?}");
        }
    }
}
