//! The rows of the core module's directives.

use std::path::PathBuf;
use std::sync::Arc;

use super::{
    IfModifiedSince, InFileOnly, KeepaliveDisable, LingeringClose, ServerTokens, buffers,
    close_server, disable_symlinks, error_page, index, keepalive_timeout, limit_except,
    open_file_cache, open_location, root, table_size, temp_path, try_files, types_entry,
};
use crate::config::diagnostic::Outcome;
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::value::{self, Args};
use crate::error_log::Destination;
use crate::http::modules::exchange;
use crate::http::pace::Size;
use crate::http::server;
use crate::http::variable::Template;
use crate::modules::{Build, process};

const HTTP_SERVER: Contexts = Contexts::HTTP_SERVER;
const HTTP_SERVER_LOCATION: Contexts = Contexts::HTTP_SERVER_LOCATION;
const LEVELS: Contexts = Contexts::LEVELS;
const SERVER: Contexts = Contexts::SERVER;
const LOCATION: Contexts = Contexts::LOCATION;
const ONE: Count = Count::Exactly(1);

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("absolute_redirect", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("on")
        .doc("Whether redirects that ringx makes hold scheme and host.")
        .set(|b, args| args.fill(&mut b.level().core.absolute_redirect, Args::flag)),
    Directive::new("alias", LOCATION, ONE)
        .syntax("path")
        .doc("The path that stands for the matched part of the URI.")
        .set(|b, args| root(b, args, true)),
    Directive::new("chunked_transfer_encoding", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("on")
        .doc("Whether a response of unknown length is sent in chunks.")
        .set(|b, args| args.fill(&mut b.level().core.chunked_transfer_encoding, Args::flag)),
    Directive::new("client_body_buffer_size", HTTP_SERVER_LOCATION, ONE)
        .syntax("size")
        .default("8k")
        .doc("How much of a request body is kept in memory; more goes to a temporary file.")
        .set(|b, args| args.fill(&mut b.level().core.client_body_buffer_size, Args::size)),
    Directive::new("client_body_early_read", HTTP_SERVER, Count::AtLeast(1))
        .syntax("string ...")
        .doc(
            "The body of a request is read before anything else is done, if one of the strings is \
              neither empty nor \"0\".",
        )
        .set(|b, args| {
            let template = |text: &String| b.http.names.template(text);
            let strings = args.all().iter().map(template).collect::<Outcome<Arc<[Template]>>>()?;
            args.fill(&mut b.level().core.client_body_early_read, |_| Ok(strings))
        }),
    Directive::new("client_body_in_file_only", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | clean | off")
        .default("off")
        .doc("Whether every request body goes to a file, and whether that file is removed again.")
        .set(|b, args| {
            args.fill(&mut b.level().core.client_body_in_file_only, |args| {
                args.choice(&[
                    ("off", InFileOnly::Off),
                    ("on", InFileOnly::On),
                    ("clean", InFileOnly::Clean),
                ])
            })
        }),
    Directive::new("client_body_temp_path", HTTP_SERVER_LOCATION, Count::Between(1, 4))
        .syntax("path [level1 [level2 [level3]]]")
        .default("client_body_temp")
        .doc("Where temporary files with request bodies are made.")
        .set(|b, args| {
            let path = temp_path(b, args)?;
            args.fill(&mut b.level().core.client_body_temp_path, |_| Ok(path))
        }),
    Directive::new("client_body_timeout", HTTP_SERVER_LOCATION, ONE)
        .syntax("time")
        .default("60s")
        .doc("How long to wait between two reads of a request body.")
        .set(|b, args| args.fill(&mut b.level().core.client_body_timeout, Args::time)),
    Directive::new("client_header_buffer_size", HTTP_SERVER, ONE)
        .syntax("size")
        .default("1k")
        .doc("The buffer a request head is first read into.")
        .set(|b, args| args.fill(&mut b.level().core.client_header_buffer_size, Args::size)),
    Directive::new("client_header_timeout", HTTP_SERVER, ONE)
        .syntax("time")
        .default("60s")
        .doc("How long a whole request head may take.")
        .set(|b, args| args.fill(&mut b.level().core.client_header_timeout, Args::time)),
    Directive::new("client_max_body_size", HTTP_SERVER_LOCATION, ONE)
        .syntax("size")
        .default("1m")
        .doc("The largest request body; larger ones get 413, 0 is no limit.")
        .set(|b, args| args.fill(&mut b.level().core.client_max_body_size, Args::offset)),
    Directive::new("default_type", HTTP_SERVER_LOCATION, ONE)
        .syntax("type")
        .default("text/plain")
        .doc("The type of a response whose file extension is not known.")
        .set(|b, args| args.fill(&mut b.level().core.default_type, |args| Ok(args.at(0).into()))),
    Directive::new("disable_symlinks", HTTP_SERVER_LOCATION, Count::Between(1, 2))
        .syntax("off | on | if_not_owner [from=part]")
        .default("off")
        .doc("Whether symbolic links in the path of a file are refused.")
        .set(|b, args| {
            let symlinks = disable_symlinks(b, args)?;
            args.fill(&mut b.level().core.disable_symlinks, |_| Ok(symlinks))
        }),
    Directive::new("early_hints", HTTP_SERVER_LOCATION, Count::AtLeast(1))
        .syntax("string ...")
        .doc(
            "Conditions for passing 103 responses of proxied servers on: true when a string is \
             neither empty nor `0`.",
        )
        .differs("More than 100 of them before an answer are a 502, passed on or not.")
        .set(|b, args| {
            for condition in args.all() {
                let condition = b.http.names.template(condition)?;
                b.level().core.early_hints.push(condition);
            }
            Ok(())
        }),
    Directive::new("error_log", HTTP_SERVER_LOCATION, Count::AtLeast(1))
        .syntax("file | stderr | syslog:server=address[,parameter=value] [level]")
        .doc("As outside of `http`, for this level; replaces what outer levels say.")
        .set(|b, args| {
            let mut target = process::error_log(b, args)?;
            // Standard error by its number, which goes where the main log goes: asking for none by name
            // does not keep it apart.
            if args.at(0).is_empty() {
                target.destination = Destination::File(PathBuf::new());
            }
            b.level().core.error_log.add(target)
        }),
    Directive::new("error_page", LEVELS, Count::AtLeast(2))
        .syntax("code ... [=[response]] uri")
        .doc("What to answer in place of the given statuses.")
        .set(|b, args| {
            let page = error_page(b, args)?;
            b.level().core.error_page.add(page)
        }),
    Directive::new("etag", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("on")
        .doc("Whether files are sent with an `ETag`.")
        .set(|b, args| args.fill(&mut b.level().core.etag, Args::flag)),
    Directive::new("http", Contexts::MAIN, Count::Exactly(0))
        .doc("The block of everything about HTTP.")
        .block(
            Contexts::HTTP,
            |b, args| {
                if std::mem::replace(&mut b.blocks.http, true) {
                    return Err(args.duplicate());
                }
                Ok(())
            },
            |b, _| b.freeze_http(),
        ),
    Directive::new("if_modified_since", HTTP_SERVER_LOCATION, ONE)
        .syntax("off | exact | before")
        .default("exact")
        .doc("How the time of a file is compared with `If-Modified-Since`.")
        .set(|b, args| {
            args.fill(&mut b.level().core.if_modified_since, |args| {
                args.choice(&[
                    ("off", IfModifiedSince::Off),
                    ("exact", IfModifiedSince::Exact),
                    ("before", IfModifiedSince::Before),
                ])
            })
        }),
    Directive::new("ignore_invalid_headers", HTTP_SERVER, ONE)
        .syntax("on | off")
        .default("on")
        .doc("Whether request header lines with strange names are dropped.")
        .set(|b, args| args.fill(&mut b.level().core.ignore_invalid_headers, Args::flag)),
    Directive::new("index", HTTP_SERVER_LOCATION, Count::AtLeast(1))
        .syntax("file ...")
        .default("index.html")
        .doc("The files that stand for a directory, in the order they are looked for.")
        .set(index),
    Directive::new("internal", LOCATION, Count::Exactly(0))
        .doc("The location is for internal redirects only; clients get 404.")
        .set(|b, args| args.fill(&mut b.level().core.internal, |_| Ok(true))),
    Directive::new("keepalive_disable", HTTP_SERVER_LOCATION, Count::AtLeast(1))
        .syntax("none | msie6 | safari ...")
        .default("msie6")
        .doc("The browsers whose connections are not kept.")
        .set(|b, args| {
            let words = [
                ("none", KeepaliveDisable::NONE.0),
                ("msie6", KeepaliveDisable::MSIE6.0),
                ("safari", KeepaliveDisable::SAFARI.0),
            ];
            let before = b.level().core.keepalive_disable.get().copied().unwrap_or_default();
            let browsers = exchange::bits(b, args, &words, before.0)?;
            b.level().core.keepalive_disable.set(KeepaliveDisable(browsers));
            Ok(())
        }),
    Directive::new("keepalive_min_timeout", HTTP_SERVER_LOCATION, ONE)
        .syntax("time")
        .default("0")
        .doc("How long an idle connection is kept also when the process is to end.")
        .set(|b, args| args.fill(&mut b.level().core.keepalive_min_timeout, Args::time)),
    Directive::new("keepalive_requests", HTTP_SERVER_LOCATION, ONE)
        .syntax("number")
        .default("1000")
        .doc("How many requests one connection may carry.")
        .set(|b, args| args.fill(&mut b.level().core.keepalive_requests, Args::number64)),
    Directive::new("keepalive_time", HTTP_SERVER_LOCATION, ONE)
        .syntax("time")
        .default("1h")
        .doc("How old a connection may become.")
        .set(|b, args| args.fill(&mut b.level().core.keepalive_time, Args::time)),
    Directive::new("keepalive_timeout", HTTP_SERVER_LOCATION, Count::Between(1, 2))
        .syntax("timeout [header_timeout]")
        .default("75s")
        .doc("How long an idle connection stays open, and what a `Keep-Alive` header says.")
        .set(|b, args| args.fill(&mut b.level().core.keepalive_timeout, keepalive_timeout)),
    Directive::new("large_client_header_buffers", HTTP_SERVER, Count::Exactly(2))
        .syntax("number size")
        .default("4 8k")
        .doc(
            "Buffers for what of a request head does not fit in the first one \
             (`client_header_buffer_size`), which comes on top of them. A line lies whole in one buffer.",
        )
        .set(|b, args| args.fill(&mut b.level().core.large_client_header_buffers, buffers)),
    Directive::new("limit_rate", LEVELS, ONE)
        .syntax("rate")
        .default("0")
        .doc("How many bytes of a response are sent a second; 0 is no limit.")
        .set(|b, args| {
            let rate = Size::parse(b, args)?;
            args.fill(&mut b.level().core.limit_rate, |_| Ok(rate))
        }),
    Directive::new("limit_rate_after", LEVELS, ONE)
        .syntax("size")
        .default("0")
        .doc("How many bytes of a response are sent before `limit_rate` applies.")
        .set(|b, args| {
            let size = Size::parse(b, args)?;
            args.fill(&mut b.level().core.limit_rate_after, |_| Ok(size))
        }),
    Directive::new("lingering_close", HTTP_SERVER_LOCATION, ONE)
        .syntax("off | on | always")
        .default("on")
        .doc("Whether a connection with unread data is read on for a while before it is closed.")
        .set(|b, args| {
            args.fill(&mut b.level().core.lingering_close, |args| {
                args.choice(&[
                    ("off", LingeringClose::Off),
                    ("on", LingeringClose::On),
                    ("always", LingeringClose::Always),
                ])
            })
        }),
    Directive::new("lingering_time", HTTP_SERVER_LOCATION, ONE)
        .syntax("time")
        .default("30s")
        .doc("How long a closing connection is read at most.")
        .set(|b, args| args.fill(&mut b.level().core.lingering_time, Args::time)),
    Directive::new("lingering_timeout", HTTP_SERVER_LOCATION, ONE)
        .syntax("time")
        .default("5s")
        .doc("How long a closing connection is waited for between two reads.")
        .set(|b, args| args.fill(&mut b.level().core.lingering_timeout, Args::time)),
    Directive::new("limit_except", LOCATION, Count::AtLeast(1))
        .syntax("method ...")
        .doc("What holds for requests with other methods; `GET` is `HEAD` as well.")
        .block(Contexts::LIMIT_EXCEPT, limit_except, |b, _| {
            b.http.close();
            Ok(())
        }),
    Directive::new("listen", SERVER, Count::AtLeast(1))
        .syntax("address[:port] | port | unix:path [default_server] [parameter ...]")
        .default("*:80 | *:8000")
        .doc("Where the server is reached; port 8000 when not started by root.")
        .differs(
            "every address is listened on by itself, also beside a wildcard of the same port; each \
             shard has a socket of its own as with `reuseport`; `ssl`, `http2` and `quic` are not \
             supported.",
        )
        .set(server::listen),
    Directive::new("location", Contexts::SERVER.or(LOCATION), Count::Between(1, 2))
        .syntax("[= | ~ | ~* | ^~] uri | @name")
        .doc("What holds for the requests whose URI matches.")
        .block(Contexts::LOCATION, open_location, |b, _| {
            b.http.close();
            Ok(())
        }),
    Directive::new("log_not_found", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("on")
        .doc("Whether files that are not found are mentioned in the error log.")
        .set(|b, args| args.fill(&mut b.level().core.log_not_found, Args::flag)),
    Directive::new("max_headers", HTTP_SERVER, ONE)
        .syntax("number")
        .default("1000")
        .doc("How many header lines a request may have.")
        .set(|b, args| args.fill(&mut b.level().core.max_headers, Args::number)),
    Directive::new("max_ranges", HTTP_SERVER_LOCATION, ONE)
        .syntax("number")
        .default("2147483647")
        .doc("How many ranges a request may ask for; 0 turns ranges off.")
        .set(|b, args| args.fill(&mut b.level().core.max_ranges, Args::number64)),
    Directive::new("merge_slashes", HTTP_SERVER, ONE)
        .syntax("on | off")
        .default("on")
        .doc("Whether slashes in a row become one.")
        .set(|b, args| args.fill(&mut b.level().core.merge_slashes, Args::flag)),
    Directive::new("msie_padding", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("on")
        .doc("Whether error pages for MSIE and Chrome are padded to 512 bytes.")
        .set(|b, args| args.fill(&mut b.level().core.msie_padding, Args::flag)),
    Directive::new("msie_refresh", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("off")
        .doc("Whether MSIE gets a page that leads on in place of a redirect.")
        .set(|b, args| args.fill(&mut b.level().core.msie_refresh, Args::flag)),
    Directive::new("port_in_redirect", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("on")
        .doc("Whether absolute redirects hold the port.")
        .set(|b, args| args.fill(&mut b.level().core.port_in_redirect, Args::flag)),
    Directive::new("recursive_error_pages", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("off")
        .doc("Whether an error in an error page has an error page of its own.")
        .set(|b, args| args.fill(&mut b.level().core.recursive_error_pages, Args::flag)),
    Directive::new("reset_timedout_connection", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("off")
        .doc("Whether a connection that timed out is reset.")
        .set(|b, args| args.fill(&mut b.level().core.reset_timedout_connection, Args::flag)),
    Directive::new("root", LEVELS, ONE)
        .syntax("path")
        .default("html")
        .doc("The directory that URIs are looked up in, relative to the prefix.")
        .set(|b, args| root(b, args, false)),
    Directive::new("send_timeout", HTTP_SERVER_LOCATION, ONE)
        .syntax("time")
        .default("60s")
        .doc("How long to wait between two writes to the client.")
        .set(|b, args| args.fill(&mut b.level().core.send_timeout, Args::time)),
    Directive::new("server", Contexts::HTTP, Count::Exactly(0)).doc("A virtual server.").block(
        Contexts::SERVER,
        |b, args| {
            b.http.open_server(args.place());
            Ok(())
        },
        close_server,
    ),
    Directive::new("server_name", SERVER, Count::AtLeast(1))
        .syntax("name ...")
        .default("\"\"")
        .doc("The hosts the server answers for: names, `*.` and `.*` wildcards, `~` regexes.")
        .set(server::server_name),
    Directive::new("server_name_in_redirect", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("off")
        .doc("Whether absolute redirects hold the server's first name, not the requested host.")
        .set(|b, args| args.fill(&mut b.level().core.server_name_in_redirect, Args::flag)),
    Directive::new("server_tokens", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off | build")
        .default("on")
        .doc("How much the `Server` header and error pages tell.")
        .set(|b, args| {
            args.fill(&mut b.level().core.server_tokens, |args| {
                args.choice(&[
                    ("off", ServerTokens::Off),
                    ("on", ServerTokens::On),
                    ("build", ServerTokens::Build),
                ])
            })
        }),
    Directive::new("tcp_nodelay", HTTP_SERVER_LOCATION, ONE)
        .syntax("on | off")
        .default("on")
        .doc("Whether small writes are sent at once.")
        .set(|b, args| args.fill(&mut b.level().core.tcp_nodelay, Args::flag)),
    Directive::new("try_files", Contexts::SERVER.or(LOCATION), Count::AtLeast(2))
        .syntax("file ... uri | @name | =code")
        .doc("The first of the files that exists is sent, else the last argument is taken.")
        .set(|b, args| {
            b.level().core.try_files.expect_unset(args)?;
            let files = try_files(b, args)?;
            b.level().core.try_files.set(files);
            Ok(())
        }),
    Directive::new("types", HTTP_SERVER_LOCATION, Count::Exactly(0))
        .default("text/html html; image/gif gif; image/jpeg jpg;")
        .doc("Types and the file extensions that have them.")
        .table(
            |b, _| {
                b.http.types =
                    b.level().core.types.get().map(|t| (**t).clone()).unwrap_or_default();
                Ok(())
            },
            |b, args| {
                types_entry(b, args);
                Ok(())
            },
            |b, _| {
                let types = Arc::new(std::mem::take(&mut b.http.types));
                b.level().core.types.set(types);
                Ok(())
            },
        ),
    Directive::new("underscores_in_headers", HTTP_SERVER, ONE)
        .syntax("on | off")
        .default("off")
        .doc("Whether `_` may stand in the name of a request header.")
        .set(|b, args| args.fill(&mut b.level().core.underscores_in_headers, Args::flag)),
    Directive::no_effect("aio", HTTP_SERVER_LOCATION, ONE, FILES).set(|_, args| match args.at(0) {
        "on" | "off" | "threads" => Ok(()),
        pool if pool.starts_with("threads=") => Ok(()),
        _ => Err(args.invalid_value()),
    }),
    Directive::no_effect("aio_write", HTTP_SERVER_LOCATION, ONE, FILES)
        .set(|_, args| args.flag().map(drop)),
    Directive::no_effect("directio", HTTP_SERVER_LOCATION, ONE, FILES)
        .set(|_, args| if args.at(0) == "off" { Ok(()) } else { args.offset().map(drop) }),
    Directive::no_effect("directio_alignment", HTTP_SERVER_LOCATION, ONE, FILES)
        .set(|_, args| args.offset().map(drop)),
    Directive::no_effect("open_file_cache", HTTP_SERVER_LOCATION, Count::Between(1, 2), FILES)
        .set(|_, args| open_file_cache(args)),
    Directive::no_effect("open_file_cache_errors", HTTP_SERVER_LOCATION, ONE, FILES)
        .set(|_, args| args.flag().map(drop)),
    Directive::no_effect("open_file_cache_min_uses", HTTP_SERVER_LOCATION, ONE, FILES)
        .set(|_, args| args.number().map(drop)),
    Directive::no_effect("open_file_cache_valid", HTTP_SERVER_LOCATION, ONE, FILES)
        .set(|_, args| value::seconds(args.at(0)).map(drop).ok_or_else(|| args.invalid_value())),
    Directive::no_effect("output_buffers", HTTP_SERVER_LOCATION, Count::Exactly(2), FILES)
        .set(|_, args| buffers(args).map(drop)),
    Directive::no_effect("read_ahead", HTTP_SERVER_LOCATION, ONE, FILES)
        .set(|_, args| args.size().map(drop)),
    Directive::no_effect("sendfile", LEVELS, ONE, FILES).set(|_, args| args.flag().map(drop)),
    Directive::no_effect("sendfile_max_chunk", HTTP_SERVER_LOCATION, ONE, FILES)
        .set(|_, args| args.size().map(drop)),
    Directive::no_effect("tcp_nopush", HTTP_SERVER_LOCATION, ONE, FILES)
        .set(|_, args| args.flag().map(drop)),
    Directive::no_effect("subrequest_output_buffer_size", HTTP_SERVER_LOCATION, ONE, MEMORY)
        .set(|_, args| args.size().map(drop)),
    Directive::no_effect("connection_pool_size", HTTP_SERVER, ONE, MEMORY)
        .set(|b, args| {
            b.level().core.connection_pool_size.set(args.pool_size()?);
            Ok(())
        }),
    Directive::no_effect("request_pool_size", HTTP_SERVER, ONE, MEMORY)
        .set(|_, args| args.pool_size().map(drop)),
    Directive::no_effect("postpone_output", HTTP_SERVER_LOCATION, ONE, MEMORY)
        .set(|_, args| args.size().map(drop)),
    Directive::no_effect("send_lowat", HTTP_SERVER_LOCATION, ONE, "Linux has no such limit")
        .set(|_, args| args.size().map(drop)),
    Directive::no_effect("server_names_hash_bucket_size", Contexts::HTTP, ONE, HASHES)
        .set(|_, args| args.number().map(drop)),
    Directive::no_effect("server_names_hash_max_size", Contexts::HTTP, ONE, HASHES)
        .set(|_, args| args.number().map(drop)),
    Directive::no_effect("types_hash_bucket_size", HTTP_SERVER_LOCATION, ONE, HASHES)
        .set(table_size),
    Directive::no_effect("types_hash_max_size", HTTP_SERVER_LOCATION, ONE, HASHES)
        .set(table_size),
    Directive::no_effect("variables_hash_bucket_size", Contexts::HTTP, ONE, HASHES)
        .set(|_, args| args.table_size()),
    Directive::no_effect("variables_hash_max_size", Contexts::HTTP, ONE, HASHES)
        .set(|_, args| args.table_size()),
    Directive::no_effect("log_subrequest", HTTP_SERVER_LOCATION, ONE, "there are no subrequests")
        .set(|_, args| args.flag().map(drop)),
    Directive::no_effect(
        "client_body_in_single_buffer",
        HTTP_SERVER_LOCATION,
        ONE,
        "a body in memory always is in one buffer",
    )
    .set(|_, args| args.flag().map(drop)),
    Directive::refused("post_action", "a request ends with its response"),
];

const FILES: &str = "how files are read and sent is not tuned";
const HASHES: &str = "tables size themselves";
const MEMORY: &str = "buffers are managed by the shard";
