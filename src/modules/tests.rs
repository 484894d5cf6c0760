//! Whole configurations: what they become, and the words for what is wrong with them.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::directive::{Action, Count, Directive, Support};
use crate::config::tree::memory::Memory;
use crate::http::location::Found;
use crate::http::modules::core::Maps;
use crate::http::modules::exchange::Pass;
use crate::http::modules::rewrite::{Condition, Step};
use crate::http::modules::websocket::{IdleCounts, IdleTimeout};
use crate::http::variable::{Captures, Part, Variable};

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

/// What nginx says for each of these, word for word; only the file's name is shortened to F.
#[test]
fn errors_in_general() {
    for (text, expected) in [
        ("events{}\nfoo;\n", "unknown directive \"foo\" in F:2"),
        ("events{}\nserver { }\n", "\"server\" directive is not allowed here in F:2"),
        ("events{}\nhttp {\n server;  }", "directive \"server\" has no opening \"{\" in F:3"),
        ("events{}\nhttp {\n root a {  }", "directive \"root\" is not terminated by \";\" in F:3"),
        ("events{}\n;\n", "unexpected \";\" in F:2"),
        ("events{}\n{\n", "unexpected \"{\" in F:2"),
        ("events{}\n}\n", "unexpected \"}\" in F:2"),
        ("events{}\nhttp {\n foo\n bar }\n", "unexpected \"}\" in F:4"),
        (
            "events{}\nhttp {\n root\n bar",
            "unexpected end of file, expecting \";\" or \"}\" in F:4",
        ),
        ("events{}\nhttp {\n", "unexpected end of file, expecting \"}\" in F:3"),
        ("events{}\nhttp{ server { \"a\"b; } }\n", "unexpected \"b\" in F:2"),
        (
            "events{}\nhttp {\n include foo;}",
            "open() \"/c/foo\" failed (2: No such file or directory) in F:3",
        ),
        ("events{}\nhttp {\n include foo*;} http {}", "\"http\" directive is duplicate in F:3"),
        ("http {}", "no \"events\" section in configuration"),
        ("events{} events{}", "\"events\" directive is duplicate in F:1"),
        ("events { } daemon off; daemon on;", "\"daemon\" directive is duplicate in F:1"),
        ("events{} env FOO bar;", "invalid number of arguments in \"env\" directive in F:1"),
        ("events{}\n error_log a b;", "invalid log level \"b\" in F:2"),
        ("worker_processes x; events{}", "\"worker_processes\" directive invalid value in F:1"),
        ("worker_priority 1x; events{}", "\"worker_priority\" directive invalid number in F:1"),
        ("worker_connections 5;", "\"worker_connections\" directive is not allowed here in F:1"),
        ("events{worker_connections x;}", "invalid number \"x\" in F:1"),
        (
            "events{} worker_cpu_affinity 12;",
            "invalid character \"2\" in \"worker_cpu_affinity\" in F:1",
        ),
        (
            "events{worker_connections 0;} http { server { listen 1; } }",
            "0 worker_connections are not enough for 1 listening sockets",
        ),
    ] {
        let expected = format!("[emerg] {}", expected.replace("F:", "/c/x.conf:"));
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn errors_in_http() {
    for (text, expected) in [
        ("upstream a { }", "no servers are inside upstream in F:3"),
        (
            "upstream a { server 127.0.0.1:1; } upstream A { server 127.0.0.1:1; }",
            "duplicate upstream \"A\" in F:3",
        ),
        ("upstream a { server 127.0.0.1:1 backup; }", "no servers in upstream \"a\" in F:3"),
        ("upstream a { server 127.0.0.1:1 weight=0; }", "invalid parameter \"weight=0\" in F:3"),
        ("upstream a { server 127.0.0.1:1 foo; }", "invalid parameter \"foo\" in F:3"),
        ("upstream a { server 127.0.0.1:x; }", "invalid port in upstream \"127.0.0.1:x\" in F:3"),
        (
            "upstream a { server nosuch.invalid; }",
            "host not found in upstream \"nosuch.invalid\" in F:3",
        ),
        (
            "upstream a { server unix:; }",
            "no path in the unix domain socket in upstream \"unix:\" in F:3",
        ),
        (
            "upstream a { keepalive x; server 127.0.0.1; }",
            "invalid value \"x\" in \"keepalive\" directive in F:3",
        ),
        (
            "upstream a { server 127.0.0.1 ; }\nserver { location /b { proxy_pass http://a:80; } }",
            "upstream \"a\" may not have port 80 in F:4",
        ),
        (
            "server { location /b { proxy_pass http://a:81; } }\nupstream a { server 127.0.0.1 ; }",
            "upstream \"a\" may not have port 81 in F:3",
        ),
        ("keepalive_timeout 5x;", "\"keepalive_timeout\" directive invalid value in F:3"),
        ("keepalive_timeout 5 5x;", "\"keepalive_timeout\" directive invalid value in F:3"),
        ("log_format a x; log_format a y;", "duplicate \"log_format\" name \"a\" in F:3"),
        ("log_format a escape=x y;", "unknown log format escaping \"x\" in F:3"),
        ("log_format a $;", "invalid parameter \"$\" in F:3"),
        ("log_format a $nosuch;", "unknown \"nosuch\" variable"),
    ] {
        let expected = format!("[emerg] {}", expected.replace("F:", "/c/x.conf:"));
        assert_eq!(error(&in_http(text)), expected, "{text}");
    }
}

#[test]
fn errors_in_server() {
    for (text, expected) in [
        ("listen 8080; listen 8080;", "a duplicate listen 0.0.0.0:8080 in F:4"),
        (
            "listen 8080 default_server; } server { listen 8080 default_server;",
            "a duplicate default server for 0.0.0.0:8080 in F:4",
        ),
        (
            "listen 8080 backlog=5; } server { listen 8080 backlog=6;",
            "duplicate listen options for 0.0.0.0:8080 in F:4",
        ),
        ("listen 8080 foo;", "invalid parameter \"foo\" in F:4"),
        ("listen 8080 backlog=x;", "invalid backlog \"backlog=x\" in F:4"),
        ("listen 0;", "invalid port in \"0\" of the \"listen\" directive in F:4"),
        ("listen [::1;", "invalid host in \"[::1\" of the \"listen\" directive in F:4"),
        (
            "listen unix:;",
            "no path in the unix domain socket in \"unix:\" of the \"listen\" directive in F:4",
        ),
        ("listen 80-70;", "invalid port range in \"80-70\" of the \"listen\" directive in F:4"),
        ("listen :8080;", "no host in \":8080\" of the \"listen\" directive in F:4"),
        (
            "listen nosuch.invalid:80;",
            "host not found in \"nosuch.invalid:80\" of the \"listen\" directive in F:4",
        ),
        ("listen 80 so_keepalive=::;", "invalid so_keepalive value: \"::\" in F:4"),
        ("listen 80 so_keepalive=0:0:0;", "invalid so_keepalive value: \"0:0:0\" in F:4"),
        ("listen 80 rcvbuf=x;", "invalid rcvbuf \"rcvbuf=x\" in F:4"),
        ("listen [::]:80 ipv6only=foo;", "invalid parameter \"ipv6only=foo\" in F:4"),
        ("server_name *;", "server name \"*\" is invalid in F:4"),
        ("server_name ~;", "empty regex in server name \"~\" in F:4"),
        ("server_name ~(;", "pcre2_compile() failed: missing closing parenthesis in \"(\" in F:4"),
        (
            "server_name a*b; listen 80; } server {listen 80; server_name a;",
            "invalid server name or wildcard \"a*b\" on 0.0.0.0:80",
        ),
        ("location / {} location / {}", "duplicate location \"/\" in F:4"),
        ("location = / {} location / {} location ^~ / {}", "duplicate location \"/\" in F:4"),
        ("location /a { location /b {} }", "location \"/b\" is outside location \"/a\" in F:4"),
        (
            "location = /a { location /a/b {} }",
            "location \"/a/b\" cannot be inside the exact location \"/a\" in F:4",
        ),
        (
            "location @a { location /a/b {} }",
            "location \"/a/b\" cannot be inside the named location \"@a\" in F:4",
        ),
        (
            "location /a { location @b {} }",
            "named location \"@b\" can be on the server level only in F:4",
        ),
        ("location ! /a { }", "invalid location modifier \"!\" in F:4"),
        ("location { }", "invalid number of arguments in \"location\" directive in F:4"),
        (
            "location @x { alias b; }",
            "the \"alias\" directive cannot be used inside the named location in F:4",
        ),
        (
            "location ~ x { proxy_pass http://127.0.0.1/; }",
            "\"proxy_pass\" cannot have URI part in location given by regular expression, or \
             inside named location, or inside \"if\" statement, or inside \"limit_except\" block \
             in F:4",
        ),
        (
            "large_client_header_buffers 0 8k;",
            "\"large_client_header_buffers\" directive invalid value in F:4",
        ),
        (
            "merge_slashes maybe;",
            "invalid value \"maybe\" in \"merge_slashes\" directive, it must be \"on\" or \"off\" \
             in F:4",
        ),
        ("if ($uri) {root x;}", "\"root\" directive is not allowed here in F:4"),
    ] {
        let expected = format!("[emerg] {}", expected.replace("F:", "/c/x.conf:"));
        assert_eq!(error(&in_server(text)), expected, "{text}");
    }
}

#[test]
fn errors_in_location() {
    for (text, expected) in [
        (
            "root a; alias b;",
            "\"alias\" directive is duplicate, \"root\" directive was specified earlier in F:5",
        ),
        ("root a; root b;", "\"root\" directive is duplicate in F:5"),
        (
            "root $document_root;",
            "the $document_root variable cannot be used in the \"root\" directive in F:5",
        ),
        ("return x;", "invalid return code \"x\" in F:5"),
        ("return 1000;", "invalid return code \"1000\" in F:5"),
        ("return http://x y;", "invalid return code \"http://x\" in F:5"),
        ("return 200 $;", "invalid variable name in F:5"),
        ("return 200 ${a;", "the closing bracket in \"a\" variable is missing in F:5"),
        ("return 200 $nosuch;", "unknown \"nosuch\" variable"),
        ("return 200 a b;", "invalid number of arguments in \"return\" directive in F:5"),
        ("set x y;", "invalid variable name \"x\" in F:5"),
        ("set $uri y;", "the duplicate \"uri\" variable in F:5"),
        ("rewrite ( b;", "pcre2_compile() failed: missing closing parenthesis in \"(\" in F:5"),
        ("rewrite a b foo;", "invalid parameter \"foo\" in F:5"),
        ("rewrite a \"\";", "empty replacement in F:5"),
        ("if ($uri = a b) {}", "invalid condition \"$uri\" in F:5"),
        ("if ($uri ~) {}", "invalid condition \"$uri\" in F:5"),
        ("if (-f ) {}", "invalid condition \"-f\" in F:5"),
        ("if (-q x) {}", "invalid condition \"-q\" in F:5"),
        ("if (!$uri) {}", "invalid condition \"!$uri\" in F:5"),
        ("if $uri {}", "invalid condition \"$uri\" in F:5"),
        ("if ($uri x y) {}", "unexpected \"x\" in condition in F:5"),
        ("if ($uri == b) {}", "unexpected \"==\" in condition in F:5"),
        ("if () {}", "invalid condition \")\" in F:5"),
        ("if ($) {}", "invalid condition \"$\" in F:5"),
        ("if ($x) {}", "unknown \"x\" variable"),
        ("if ($1 = a) {}", "unknown \"1\" variable"),
        ("if ($uri) {if ($uri) {}}", "\"if\" directive is not allowed here in F:5"),
        (
            "if ($uri) {proxy_set_header a b;}",
            "\"proxy_set_header\" directive is not allowed here in F:5",
        ),
        ("proxy_pass foo;", "invalid URL prefix in F:5"),
        ("proxy_pass http://;", "no host in upstream \"\" in F:5"),
        ("proxy_pass http://127.0.0.1:x;", "invalid port in upstream \"127.0.0.1:x\" in F:5"),
        (
            "proxy_pass http://nosuch.invalid/x;\n\n",
            "host not found in upstream \"nosuch.invalid\" in F:5",
        ),
        (
            "proxy_pass http://127.0.0.1; proxy_pass http://127.0.0.1;",
            "\"proxy_pass\" directive is duplicate in F:5",
        ),
        (
            "proxy_redirect default;",
            "\"proxy_redirect default\" should be placed after the \"proxy_pass\" directive in F:5",
        ),
        ("proxy_redirect a;", "invalid parameter \"a\" in F:5"),
        (
            "proxy_redirect a b; proxy_redirect off;",
            "\"proxy_redirect\" directive is duplicate in F:5",
        ),
        (
            "proxy_pass http://$host; proxy_redirect default;",
            "\"proxy_redirect default\" cannot be used with \"proxy_pass\" directive with \
             variables in F:5",
        ),
        ("proxy_buffers 1 4k;", "there must be at least 2 \"proxy_buffers\" in F:8"),
        ("proxy_buffers x 4k;", "\"proxy_buffers\" directive invalid value in F:5"),
        (
            "proxy_buffer_size 16k;",
            "\"proxy_busy_buffers_size\" must be less than the size of all \"proxy_buffers\" \
             minus one buffer in F:8",
        ),
        (
            "proxy_busy_buffers_size 1k;",
            "\"proxy_busy_buffers_size\" must be equal to or greater than the maximum of the \
             value of \"proxy_buffer_size\" and one of the \"proxy_buffers\" in F:8",
        ),
        (
            "uwsgi_max_temp_file_size 1k;",
            "\"uwsgi_max_temp_file_size\" must be equal to zero to disable temporary files usage \
             or must be equal to or greater than the maximum of the value of \
             \"uwsgi_buffer_size\" and one of the \"uwsgi_buffers\" in F:8",
        ),
        ("proxy_next_upstream foo;", "invalid value \"foo\" in F:5"),
        ("proxy_http_version 1.2;", "invalid value \"1.2\" in F:5"),
        ("proxy_temp_path a 0;", "\"proxy_temp_path\" directive invalid value in F:5"),
        ("proxy_read_timeout 1y;", "\"proxy_read_timeout\" directive invalid value in F:5"),
        ("uwsgi_pass 127.0.0.1;", "no port in upstream \"127.0.0.1\" in F:5"),
        ("uwsgi_pass 127.0.0.1:3031/x;", "invalid host in upstream \"127.0.0.1:3031/x\" in F:5"),
        ("uwsgi_modifier1 300;", "value must be between 0 and 255 in F:5"),
        ("uwsgi_modifier1 x;", "\"uwsgi_modifier1\" directive invalid number in F:5"),
        ("uwsgi_param A B C;", "invalid parameter \"C\" in F:5"),
        ("error_page 600 /x;", "value \"600\" must be between 300 and 599 in F:5"),
        ("error_page 499 /x;", "invalid value \"499\" in F:5"),
        ("error_page 404 =x /x;", "invalid value \"=x\" in F:5"),
        ("error_page = /x;", "invalid value \"=\" in F:5"),
        ("try_files a =x;", "invalid code \"=x\" in F:5"),
        ("try_files a b; try_files c d;", "\"try_files\" directive is duplicate in F:5"),
        ("index \"\";", "index \"\" in \"index\" directive is invalid in F:5"),
        ("types { a/b { } }", "unexpected \"{\" in F:5"),
        ("access_log a foo;", "unknown log format \"foo\" in F:5"),
        ("access_log a combined buffer=0;", "invalid buffer size \"0\" in F:5"),
        ("access_log a combined flush=1s;", "no buffer is defined for access_log \"a\" in F:5"),
        ("access_log off x;", "invalid parameter \"x\" in F:5"),
        ("client_max_body_size x;", "\"client_max_body_size\" directive invalid value in F:5"),
        ("internal on;", "invalid number of arguments in \"internal\" directive in F:5"),
        ("server_tokens x;", "invalid value \"x\" in F:5"),
        ("add_header a b c;", "invalid parameter \"c\" in F:5"),
        ("max_ranges x;", "\"max_ranges\" directive invalid number in F:5"),
        (
            "websocket yes;",
            "invalid value \"yes\" in \"websocket\" directive, it must be \"on\" or \"off\" in F:5",
        ),
        ("websocket on; websocket on;", "\"websocket\" directive is duplicate in F:5"),
        ("websocket_idle_timeout x;", "\"websocket_idle_timeout\" directive invalid value in F:5"),
        ("websocket_idle_timeout 0;", "\"websocket_idle_timeout\" directive invalid value in F:5"),
        ("websocket_idle_timeout 5m pings;", "invalid parameter \"pings\" in F:5"),
        ("websocket_idle_timeout off data;", "invalid parameter \"data\" in F:5"),
        (
            "websocket_idle_timeout 5m data any;",
            "invalid number of arguments in \"websocket_idle_timeout\" directive in F:5",
        ),
        ("websocket_close_spread 1x;", "\"websocket_close_spread\" directive invalid value in F:5"),
        (
            "proxy_upgrade_allow;",
            "invalid number of arguments in \"proxy_upgrade_allow\" directive in F:5",
        ),
        ("proxy_upgrade_allow h2c TLS/1.0;", "invalid protocol \"TLS/1.0\" in F:5"),
        ("if ($uri) { websocket on; }", "\"websocket\" directive is not allowed here in F:5"),
    ] {
        let expected = format!("[emerg] {}", expected.replace("F:", "/c/x.conf:"));
        assert_eq!(error(&in_location(text)), expected, "{text}");
    }
}

#[test]
fn what_ringx_does_not_have_is_refused_by_name() {
    assert_eq!(
        error(&in_http("gzip on;")),
        "[emerg] \"gzip\" directive is not supported: responses are not compressed in /c/x.conf:3"
    );
    assert_eq!(warning(&in_http("gzip off;")), "");
    assert_eq!(
        error(&in_http("valid_referers none;")),
        "[emerg] \"valid_referers\" directive is not supported: there are no variables of this module \
         in /c/x.conf:3"
    );
    assert_eq!(
        error(&in_server("listen 443 ssl;")),
        "[emerg] the \"ssl\" parameter of the \"listen\" directive is not supported in /c/x.conf:4"
    );
    assert_eq!(
        error(&in_location("proxy_set_header A $ssl_protocol;")),
        "[emerg] the \"ssl_protocol\" variable is not supported in /c/x.conf:5"
    );
    let loaded =
        load_text(&in_http("sendfile on; server { sendfile off; tcp_nopush on; }")).unwrap();
    let said: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "[notice] \"sendfile\" directive has no effect: how files are read and sent is not tuned",
            "[notice] \"tcp_nopush\" directive has no effect: how files are read and sent is not tuned",
        ]
    );
}

/// What asks for nothing is checked as if it asked for something.
#[test]
fn what_asks_for_nothing_is_checked() {
    for (text, expected) in [
        ("if ($uri) { autoindex off; }", "\"autoindex\" directive is not allowed here in F:5"),
        ("autoindex;", "invalid number of arguments in \"autoindex\" directive in F:5"),
        ("autoindex off off;", "invalid number of arguments in \"autoindex\" directive in F:5"),
        ("autoindex OFF; autoindex off;", "\"autoindex\" directive is duplicate in F:5"),
        ("autoindex off { }", "directive \"autoindex\" is not terminated by \";\" in F:5"),
        ("ssl_stapling off;", "\"ssl_stapling\" directive is not allowed here in F:5"),
        ("proxy_cache off; proxy_cache off;", "\"proxy_cache\" directive is duplicate in F:5"),
        ("dav_methods;", "invalid number of arguments in \"dav_methods\" directive in F:5"),
        (
            "auth_basic OFF;",
            "\"auth_basic\" directive is not supported: access is not controlled by password in F:5",
        ),
        ("sendfile off; sendfile off;", "\"sendfile\" directive is duplicate in F:5"),
    ] {
        let expected = format!("[emerg] {}", expected.replace("F:", "/c/x.conf:"));
        assert_eq!(error(&in_location(text)), expected, "{text}");
    }
    assert_eq!(warning(&in_location("auth_basic off; limit_except GET { auth_basic off; }")), "");
    assert_eq!(warning(&in_location("gzip off; if ($uri) { gzip Off; }")), "");
    assert_eq!(warning(&in_location("gzip_proxied off; gzip_proxied off;")), "");
}

#[test]
fn sizes_without_effect_are_checked() {
    for (text, expected) in [
        (
            "variables_hash_max_size 0;",
            "could not build variables_hash, you should increase variables_hash_max_size: 0",
        ),
        (
            "variables_hash_bucket_size 0;",
            "could not build variables_hash, you should increase variables_hash_bucket_size: 0",
        ),
        (
            "variables_hash_bucket_size 65473;",
            "could not build variables_hash, too large variables_hash_bucket_size: 65536",
        ),
        (
            "types_hash_max_size 0;",
            "could not build types_hash, you should increase types_hash_max_size: 0",
        ),
        (
            "proxy_headers_hash_bucket_size 0;",
            "could not build proxy_headers_hash, you should increase \
             proxy_headers_hash_bucket_size: 0",
        ),
        ("connection_pool_size 111;", "the pool size must be no less than 112 in /c/x.conf:3"),
        ("request_pool_size 4k1;", "\"request_pool_size\" directive invalid value in /c/x.conf:3"),
        ("request_pool_size 4097;", "the pool size must be a multiple of 16 in /c/x.conf:3"),
    ] {
        assert_eq!(error(&in_http(text)), format!("[emerg] {expected}"), "{text}");
    }
    assert!(
        load_text(&in_http("variables_hash_bucket_size 65472; request_pool_size 112;")).is_ok()
    );
    assert!(
        load_text(&in_location("types_hash_max_size 0; proxy_headers_hash_max_size 0;")).is_ok()
    );
}

#[test]
fn a_buffer_is_not_smaller_than_the_pool_of_its_connection() {
    let expected = "[emerg] the \"large_client_header_buffers\" size must be equal to or greater than \
                    \"connection_pool_size\" in /c/x.conf";
    for text in [
        "large_client_header_buffers 4 511; server {}",
        "connection_pool_size 1k; server { large_client_header_buffers 4 512; }",
    ] {
        assert_eq!(error(&in_http(text)).rsplit_once(':').unwrap().0, expected, "{text}");
    }
    for text in [
        "large_client_header_buffers 4 512; server {}",
        "large_client_header_buffers 4 511; server { connection_pool_size 256; }",
        "large_client_header_buffers 4 511; server { large_client_header_buffers 4 1k; }",
    ] {
        assert!(load_text(&in_http(text)).is_ok(), "{text}");
    }
}

#[test]
fn warnings() {
    for (text, expected) in [
        (
            in_server("server_name a a; listen 80; } server {listen 80; server_name a;"),
            "conflicting server name \"a\" on 0.0.0.0:80, ignored",
        ),
        (
            in_server("server_name a/b;"),
            "server name \"a/b\" has suspicious symbols in /c/x.conf:4",
        ),
        (
            in_location("proxy_next_upstream error error;"),
            "duplicate value \"error\" in /c/x.conf:5",
        ),
        (
            in_location("index /a b;"),
            "only the last index in \"index\" directive should be absolute in /c/x.conf:5",
        ),
        (
            in_location("types { a/b c; d/e c; }"),
            "duplicate extension \"c\", content type: \"d/e\", previous content type: \"a/b\" in \
             /c/x.conf:5",
        ),
        (
            "worker_cpu_affinity 01 10; worker_processes 3; events{}".to_owned(),
            "the number of \"worker_processes\" is not equal to the number of \
             \"worker_cpu_affinity\" masks, using last mask for remaining worker processes",
        ),
    ] {
        assert_eq!(warning(&text), format!("[warn] {expected}"), "{text}");
    }
}

#[test]
fn the_command_line_comes_first() {
    let files = Memory::of(&[("/c/x.conf", "events {} daemon off;")]);
    let with = |globals: &str| {
        let options = LoadOptions { globals: Some(globals.to_owned()), ..options() };
        load_from(&options, &files).map(|l| l.config).map_err(|f| f.error.to_string())
    };
    let config = with("worker_processes 3; error_log stderr info;").unwrap();
    assert_eq!(*config.process.worker_processes, 3);
    assert!(!*config.process.daemon);
    assert_eq!(config.process.error_log[0].destination, Destination::Stderr);
    assert_eq!(
        with("daemon on;").unwrap_err(),
        "[emerg] \"daemon\" directive is duplicate in /c/x.conf:1"
    );
    assert_eq!(with("foo bar;").unwrap_err(), "[emerg] unknown directive \"foo\" in command line");
}

#[test]
fn defaults_of_the_process() {
    let config = load_text("events {} env A=b;").unwrap().config;
    assert_eq!(*config.process.env, ["A=b", "TZ"]);
    let config = load_text("events {}").unwrap().config;
    assert!(config.http.is_none());
    assert!(*config.process.worker_processes >= 1);
    assert_eq!(*config.process.pid, Path::new("/p/logs/nginx.pid"));
    assert_eq!(*config.events.worker_connections, 512);
    assert_eq!(*config.process.env, ["TZ"]);
    assert_eq!(
        *config.process.error_log,
        [Target {
            destination: Destination::File("/p/logs/error.log".into()),
            level: Level::Error
        }]
    );
}

fn rows() -> impl Iterator<Item = &'static Directive<Build>> {
    MODULES.iter().flat_map(Module::rows)
}

#[test]
fn names_are_unique_in_every_context() {
    let mut seen = HashSet::new();
    for row in rows() {
        let contexts = match row.support {
            Support::Refused { .. } => Contexts::ANY,
            _ => row.contexts,
        };
        for context in contexts.names() {
            assert!(seen.insert((row.name, context)), "{} twice in {context}", row.name);
        }
    }
}

#[test]
fn rows_are_complete() {
    for row in rows() {
        let is_passed = matches!(row.action, Action::Pass);
        let has_no_effect = matches!(row.support, Support::NoEffect(_) | Support::Refused { .. });
        // What has no effect may still look at its arguments.
        assert!(has_no_effect || !is_passed, "{}", row.name);
        assert!(has_no_effect || row.doc.ends_with('.'), "{}: no sentence", row.name);
        assert!(row.contexts.names().next().is_some(), "{}", row.name);
        let takes_none = row.count == Count::Exactly(0);
        assert!(has_no_effect || !takes_none || row.syntax.is_empty(), "{}: syntax", row.name);
        let takes_some = !row.count.allows(0);
        assert!(has_no_effect || !takes_some || !row.syntax.is_empty(), "{}: syntax", row.name);
    }
}

#[test]
fn defaults_fill_every_setting() {
    let mut build = Build::new(Path::new("/p"));
    if let Err(error) = build.read_defaults() {
        panic!("{error}");
    }
    let config = load_text("events {} http { server { location / { if ($uri) { } } } }").unwrap();
    // There are no name servers unless some are given.
    let shown = format!("{:?}", config.config).replace("{ servers: Setting(None)", "");
    assert!(!shown.contains("Setting(None)"), "{shown}");
}

/// `UPDATE_MANUAL=1 cargo test --lib the_manual` writes the file anew.
#[test]
fn the_manual_is_that_of_the_rows() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/directives.md");
    if std::env::var_os("UPDATE_MANUAL").is_some() {
        std::fs::write(&path, manual()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == manual(), "conf/directives.md is old: run this test with UPDATE_MANUAL=1");
}

#[test]
fn inner_levels_inherit() {
    let http = http_of(
        "client_max_body_size 2m; add_header A 1; access_log a.log; root /r;
         server { add_header B 2; location /x { client_max_body_size 3m; alias /y;
             if ($uri) { add_header C 3; } location /x/y { access_log off; } } }",
    );
    let sizes: Vec<u64> =
        http.locations.iter().map(|l| *l.settings.core.client_max_body_size).collect();
    assert_eq!(sizes, [2 << 20, 3 << 20, 3 << 20, 3 << 20]);
    let headers: Vec<Vec<&str>> = http
        .locations
        .iter()
        .map(|l| l.settings.headers.add_header.iter().map(|h| &*h.name).collect())
        .collect();
    assert_eq!(headers, [vec!["B"], vec!["B"], vec!["C"], vec!["B"]]);
    let roots: Vec<_> = http.locations.iter().map(|l| l.settings.core.root.maps).collect();
    let behind = Maps::Behind("/x".len());
    assert_eq!(roots, [Maps::Whole, behind, behind, behind]);
    assert_eq!(http.log_files.len(), 1);
    assert_eq!(http.log_files[0].path, Path::new("/p/a.log"));
    let logs: Vec<_> =
        http.locations.iter().map(|l| l.settings.access_log.access_log.len()).collect();
    assert_eq!(logs, [1, 1, 1, 0]);
}

#[test]
fn websocket_settings() {
    let http = http_of(
        "websocket_idle_timeout 90s; proxy_upgrade_allow H2C; proxy_upgrade_allow foo;
         server {
             location /a { }
             location /b {
                 websocket on; websocket_strict off; websocket_metrics on; proxy_half_close off;
                 websocket_idle_timeout 5m data; websocket_close_spread 1m; proxy_upgrade_allow TLS;
             }
             location /c { websocket_idle_timeout off; websocket_close_spread off; }
         }",
    );
    let settings = |at: usize| &http.locations[at].settings.websocket;
    let idle = |secs, counts| Some(IdleTimeout { time: Duration::from_secs(secs), counts });
    let (a, b, c) = (settings(1), settings(2), settings(3));
    assert_eq!((*a.enabled, *a.strict, *a.metrics, *a.half_close), (false, true, false, true));
    assert_eq!((*b.enabled, *b.strict, *b.metrics, *b.half_close), (true, false, true, false));
    assert_eq!(*a.idle_timeout, idle(90, IdleCounts::Any));
    assert_eq!(*b.idle_timeout, idle(300, IdleCounts::Data));
    assert_eq!(*c.idle_timeout, None);
    assert_eq!(*a.close_spread, Some(Duration::from_secs(10)));
    assert_eq!(*b.close_spread, Some(Duration::from_secs(60)));
    assert_eq!(*c.close_spread, None);
    assert_eq!(*a.upgrade_allow, ["h2c".into(), "foo".into()]);
    assert_eq!(*b.upgrade_allow, ["tls".into()]);
}

#[test]
fn relative_paths_stand_below_the_prefix() {
    let http = http_of(
        "server { location /a { root x/; } location /b { root $host/x; } location /c { root /; }
                  location /d { } }",
    );
    let roots: Vec<_> = http.locations[1..]
        .iter()
        .map(|l| l.settings.core.root.path.parts.first().cloned())
        .collect();
    let literal = |text: &str| Some(Part::Literal(text.as_bytes().into()));
    assert_eq!(
        roots,
        [literal("/p/x"), Some(Part::Variable(Variable::Host)), None, literal("/p/html")]
    );
}

#[test]
fn addresses_and_their_servers() {
    let http = http_of(
        "server { listen 80; listen [::1]:81; server_name A.org *.a.org; }
         server { listen 80 default_server backlog=7; listen unix:/s; server_name .a.org ~^x(?<y>.)Z; }
         server { listen 127.0.0.1:8070-8072; server_name www.*; }",
    );
    let shown: Vec<_> = http
        .addresses
        .iter()
        .map(|a| (&*a.listen.name, a.listen.backlog, a.default_server.0, a.names.is_empty()))
        .collect();
    assert_eq!(
        shown,
        [
            ("0.0.0.0:80", 7, 1, false),
            ("[::1]:81", 511, 0, true),
            ("unix:/s", 511, 1, false),
            ("127.0.0.1:8070", 511, 2, true),
            ("127.0.0.1:8071", 511, 2, true),
            ("127.0.0.1:8072", 511, 2, true),
        ]
    );
    let names = &http.addresses[0].names;
    assert_eq!(names.find(b"a.org").map(|id| id.0), Some(0));
    assert_eq!(names.find(b"b.a.org").map(|id| id.0), Some(0));
    assert_eq!(names.find(b"other"), None);
    let mut captures = Captures::default();
    assert_eq!(names.regex[0].0.matches(b"xyz", &mut captures), Ok(true));
    assert_eq!(captures.group(1), Some(b"y".as_slice()));
    assert_eq!(*http.variable_names, ["y".into()]);
    let first: Vec<_> = http.servers.iter().map(|s| &*s.name).collect();
    assert_eq!(first, ["a.org", "a.org", "www.*"]);
}

#[test]
fn locations_and_redirects() {
    let http = http_of(
        "server { listen 80;
            location / { } location = /x { } location ^~ /img/ { }
            location /app/ { proxy_pass http://127.0.0.1:1; location /app/static/ { } }
            location ~ \\.php$ { uwsgi_pass 127.0.0.1:2; } location @back { } }",
    );
    let tree = &http.servers[0].locations;
    let name = |found: Found| match found {
        Found::Exact(id) | Found::Prefix { location: id, .. } | Found::AutoRedirect(id) => {
            http.location(id).name.to_string()
        }
        Found::None => String::new(),
    };
    assert_eq!(name(tree.find_prefix(b"/x")), "/x");
    assert_eq!(name(tree.find_prefix(b"/img/a")), "/img/");
    assert!(matches!(tree.find_prefix(b"/img/a"), Found::Prefix { no_regex: true, .. }));
    assert!(matches!(tree.find_prefix(b"/app"), Found::AutoRedirect(_)));
    let Found::Prefix { location, .. } = tree.find_prefix(b"/app/static/x") else { panic!() };
    assert_eq!(http.location(location).prefix.as_deref(), Some("/app/"));
    assert_eq!(name(http.location(location).nested.find_prefix(b"/app/static/x")), "/app/static/");
    assert_eq!(tree.regexes.len(), 1);
    assert!(http.servers[0].named.contains_key("@back"));
}

#[test]
fn upstreams_explicit_and_implicit() {
    let http = http_of(
        "server { location /a { proxy_pass http://127.0.0.1; }
                  location /b { proxy_pass http://127.0.0.1:80/x; }
                  location /c { proxy_pass http://127.0.0.1:81; }
                  location /d { proxy_pass http://GROUP/; }
                  location /e { uwsgi_pass unix:/u; }
                  location /f { proxy_pass http://unix:/v:/w; }
                  location /g { uwsgi_pass group; } }
         upstream group { server 127.0.0.1:9 weight=2 max_fails=0; server unix:/s backup; keepalive 4; }",
    );
    let target = |at: usize| {
        let settings = &http.locations[at].settings;
        let pass = settings.proxy.pass.get().map(|p| (&p.target, &*p.url, p.uri.as_deref()));
        let pass = pass.or(settings.uwsgi.pass.get().map(|p| (&p.target, &*p.url, None)));
        match pass {
            Some((Pass::Upstream(id), url, uri)) => {
                let upstream = http.upstream(*id);
                let peers: Vec<_> = upstream.peers.iter().map(|p| p.name.to_string()).collect();
                (peers, upstream.explicit, url.to_owned(), uri.map(str::to_owned))
            }
            _ => panic!("no pass in {at}"),
        }
    };
    let peer = |name: &str| vec![name.to_owned()];
    let group = vec!["127.0.0.1:9".to_owned(), "unix:/s".to_owned()];
    let uri = |text: &str| Some(text.to_owned());
    assert_eq!(target(1), (peer("127.0.0.1:80"), false, "http://127.0.0.1".into(), None));
    assert_eq!(target(2), (peer("127.0.0.1:80"), false, "http://127.0.0.1:80".into(), uri("/x")));
    assert_eq!(target(3), (peer("127.0.0.1:81"), false, "http://127.0.0.1:81".into(), None));
    assert_eq!(target(4), (group.clone(), true, "http://GROUP".into(), uri("/")));
    assert_eq!(target(5), (peer("unix:/u"), false, "uwsgi://unix:/u:".into(), None));
    assert_eq!(target(6), (peer("unix:/v"), false, "http://unix:/v:".into(), uri("/w")));
    assert_eq!(target(7), (group, true, "uwsgi://group".into(), None));
    assert_eq!(http.upstreams.len(), 5);
    let group = http.upstreams.iter().find(|u| u.explicit).unwrap();
    assert_eq!((group.keepalive.idle.connections, group.keepalive.requests), (4, 1000));
    assert_eq!(
        (group.peers[0].weight, group.peers[0].max_fails, group.peers[1].backup),
        (2, 0, true)
    );
    let hosts: Vec<_> = [1, 3, 6]
        .iter()
        .filter_map(|at| http.locations[*at].settings.proxy.pass.get())
        .map(|p| (&*p.host, &*p.port))
        .collect();
    assert_eq!(hosts, [("127.0.0.1", "80"), ("127.0.0.1:81", "81"), ("localhost", "")]);
}

#[test]
fn steps_in_the_order_written() {
    let http = http_of(
        "server { set $a $arg_x; if ($a ~* ^(.)) { return 301 /$1; } set $args q;
             location / { rewrite ^/(.*)$ /x/$1? last; if (!-f $uri) { proxy_pass http://127.0.0.1:1; }
                 break; return 200; } }",
    );
    let steps = &http.locations[0].settings.rewrite.steps;
    assert!(matches!(
        steps.as_slice(),
        [
            Step::Set { .. },
            Step::If { condition: Condition::Match { .. }, .. },
            Step::SetArgs { .. }
        ]
    ));
    let Step::If { location, .. } = &steps[1] else { panic!() };
    assert!(matches!(
        http.location(*location).settings.rewrite.steps.as_slice(),
        [Step::Return(answer)] if answer.code == 301
    ));
    let steps = &http.locations[2].settings.rewrite.steps;
    assert!(matches!(
        steps.as_slice(),
        [Step::Rewrite(rewrite), Step::If { .. }, Step::Break, Step::Return(_)] if rewrite.drop_args
    ));
    assert!(http.locations[3].handler.is_some());
    assert!(http.locations[2].handler.is_none());
}

#[test]
fn an_if_keeps_the_handler_of_its_location() {
    let http = http_of(
        "server { location / { proxy_pass http://127.0.0.1:1; if ($uri) { add_header A b; }
                  location /x { } } }",
    );
    assert_eq!(http.locations[2].handler, http.locations[1].handler);
    assert!(http.locations[2].settings.proxy.pass.is_set());
    assert!(http.locations[3].handler.is_none() && !http.locations[3].settings.proxy.pass.is_set());
}

#[test]
fn hidden_headers_and_sizes() {
    let http =
        http_of("proxy_hide_header X-Foo; server { proxy_pass_header Server; location / { } }");
    let exchange = &http.locations[1].settings.proxy.exchange;
    let has = |name: &str| exchange.hidden.iter().any(|known| **known == *name.as_bytes());
    assert!(has("x-foo") && has("date") && !has("server"));
    assert!(exchange.hidden.is_sorted());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_configuration_ends_in_a_result(
        words in proptest::collection::vec(word(), 0..30)
    ) {
        fuzz_load(format!("events {{}} http {{ {} }}", words.join(" ")).as_bytes());
    }
}

/// Pieces that often fit together.
fn word() -> impl Strategy<Value = String> {
    let names: Vec<&str> = rows().map(|row| row.name).filter(|name| *name != "include").collect();
    prop_oneof![
        proptest::sample::select(names).prop_map(str::to_owned),
        proptest::sample::select(vec![
            "server {",
            "location / {",
            "location ~ a {",
            "if ($uri) {",
            "upstream u {",
            "}",
            "}",
            ";",
            ";",
            ";",
            "on",
            "off",
            "1",
            "4k",
            "$uri",
            "/x",
            "127.0.0.1:80",
            "(",
            ")",
            "=",
            "http://127.0.0.1:1;",
            "server 127.0.0.1;",
            "listen 80;",
            "\"a b\"",
            "types {",
            "unix:/x",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,6}",
    ]
}
