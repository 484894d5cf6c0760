//! The http core module: what a server and a location are, and everything about the client's side
//! of a connection.

mod content_type;
mod directives;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::diagnostic::{Outcome, Place, fault};
use crate::config::setting::{List, Own, Setting};
use crate::config::value::{self, Args};
use crate::http::draft::{Kind, Level};
use crate::http::pace::Size;
use crate::http::server;
use crate::http::variable::{Part, Template, Variable};
use crate::modules::Build;
pub use content_type::content_type;
pub use directives::DIRECTIVES;

/// The core module's settings of one level.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    // The client's connection and the request head.
    pub client_header_timeout: Setting<Duration>,
    pub client_header_buffer_size: Setting<usize>,
    pub large_client_header_buffers: Setting<Buffers>,
    /// There is no such pool; the buffers must not be smaller all the same.
    pub connection_pool_size: Setting<usize>,
    pub max_headers: Setting<usize>,
    pub ignore_invalid_headers: Setting<bool>,
    pub underscores_in_headers: Setting<bool>,
    pub merge_slashes: Setting<bool>,
    pub keepalive_timeout: Setting<KeepaliveTimeout>,
    pub keepalive_min_timeout: Setting<Duration>,
    pub keepalive_requests: Setting<u64>,
    pub keepalive_time: Setting<Duration>,
    pub keepalive_disable: Setting<KeepaliveDisable>,
    pub lingering_close: Setting<LingeringClose>,
    pub lingering_time: Setting<Duration>,
    pub lingering_timeout: Setting<Duration>,
    pub reset_timedout_connection: Setting<bool>,
    pub send_timeout: Setting<Duration>,
    pub tcp_nodelay: Setting<bool>,

    // The request body.
    pub client_max_body_size: Setting<u64>,
    pub client_body_buffer_size: Setting<usize>,
    pub client_body_timeout: Setting<Duration>,
    pub client_body_temp_path: Setting<TempPath>,
    pub client_body_in_file_only: Setting<InFileOnly>,
    /// Any that is neither empty nor "0" when expanded: the body is read before the phases.
    pub client_body_early_read: Setting<Arc<[Template]>>,

    // Files.
    pub root: Setting<Root>,
    pub types: Setting<Arc<Types>>,
    pub default_type: Setting<Arc<str>>,
    pub index: List<Template>,
    pub try_files: Own<TryFiles>,
    pub etag: Setting<bool>,
    pub if_modified_since: Setting<IfModifiedSince>,
    pub max_ranges: Setting<u64>,
    pub log_not_found: Setting<bool>,
    pub disable_symlinks: Setting<DisableSymlinks>,

    // The response.
    pub error_page: List<ErrorPage>,
    pub recursive_error_pages: Setting<bool>,
    pub server_tokens: Setting<ServerTokens>,
    pub chunked_transfer_encoding: Setting<bool>,
    pub absolute_redirect: Setting<bool>,
    pub server_name_in_redirect: Setting<bool>,
    pub port_in_redirect: Setting<bool>,
    pub msie_padding: Setting<bool>,
    pub msie_refresh: Setting<bool>,
    pub internal: Setting<bool>,
    /// Conditions under which a 103 is passed on.
    pub early_hints: List<Template>,
    /// Bytes a second; 0 is no limit.
    pub limit_rate: Setting<Size>,
    pub limit_rate_after: Setting<Size>,
    pub error_log: List<crate::error_log::Target>,
}

/// `number size`, as in `large_client_header_buffers` and `proxy_buffers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    pub number: usize,
    pub size: usize,
}

/// `keepalive_timeout idle [header];`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepaliveTimeout {
    /// Zero: no keepalive at all.
    pub idle: Duration,
    /// Seconds said in a `Keep-Alive` response header.
    pub header: Option<u64>,
}

/// `keepalive_disable`: a set of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeepaliveDisable(pub u16);

impl KeepaliveDisable {
    pub const NONE: KeepaliveDisable = KeepaliveDisable(1);
    /// After a POST of an old MSIE.
    pub const MSIE6: KeepaliveDisable = KeepaliveDisable(1 << 1);
    pub const SAFARI: KeepaliveDisable = KeepaliveDisable(1 << 2);

    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// `client_body_in_file_only`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFileOnly {
    /// Only what does not fit into memory goes to a file.
    Off,
    /// Every body, and the file stays.
    On,
    /// Every body, and the file is removed after the request.
    Clean,
}

/// `disable_symlinks off | on | if_not_owner [from=part];`
#[derive(Debug, Clone)]
pub struct DisableSymlinks {
    pub mode: SymlinkMode,
    /// The start of a path that is not checked.
    pub from: Option<Template>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymlinkMode {
    /// Links are followed.
    Off,
    /// A path with a link in it is refused.
    On,
    /// The same, unless the link and what it leads to belong to the same user.
    IfNotOwner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LingeringClose {
    Off,
    On,
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfModifiedSince {
    Off,
    Exact,
    Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerTokens {
    Off,
    On,
    Build,
}

/// `client_body_temp_path path [level1 [level2 [level3]]];` The path is absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TempPath {
    pub path: PathBuf,
    /// Digits of the file's number that name each directory level; zero: no such level.
    pub levels: [u8; 3],
}

/// `root` and `alias` are one slot. The template's literal start is absolute: the prefix is
/// prepended at load to a relative path.
#[derive(Debug, Clone)]
pub struct Root {
    pub path: Template,
    pub maps: Maps,
    /// What a path stands below that turns out to be relative: one that starts with a variable. Empty
    /// for one that cannot.
    pub prefix: Box<[u8]>,
}

/// What of the URI names a file behind a [`Root::path`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maps {
    /// `root`: all of it.
    Whole,
    /// `alias`: what follows the name of the location that has it, which is so many bytes long.
    Behind(usize),
    /// `alias` of a regex location, whose path names the file by itself: nothing, unless `try_files`
    /// has found something behind it.
    Nothing,
}

impl Root {
    /// What is to stand before a path that the template has given.
    pub fn before(&self, path: &[u8]) -> &[u8] {
        if path.starts_with(b"/") { b"" } else { &self.prefix }
    }

    pub fn is_alias(&self) -> bool {
        self.maps != Maps::Whole
    }
}

/// Extension to MIME type. Keys are lower case.
pub type Types = std::collections::HashMap<Box<[u8]>, Arc<str>>;

#[derive(Debug, Clone)]
pub struct TryFiles {
    /// Each is tested behind root or alias.
    pub candidates: Vec<Candidate>,
    pub last: TryFilesLast,
}

#[derive(Debug, Clone)]
pub struct Candidate {
    /// Without the `/` at its end that asks for a directory.
    pub path: Template,
    pub is_directory: bool,
}

#[derive(Debug, Clone)]
pub enum TryFilesLast {
    /// `/uri?args`: an internal redirect.
    Uri(Template),
    /// `@name`.
    Named(Arc<str>),
    /// `=code`.
    Code(u16),
}

/// One `error_page` line.
#[derive(Debug, Clone)]
pub struct ErrorPage {
    pub codes: Vec<u16>,
    pub answer: ErrorPageStatus,
    pub target: ErrorPageTarget,
}

/// The status sent with an error page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorPageStatus {
    /// No `=`: the original code.
    Original,
    /// `=CODE`.
    Code(u16),
    /// `=`: what the target produces.
    OfTarget,
}

#[derive(Debug, Clone)]
pub enum ErrorPageTarget {
    /// `/uri[?args]`: an internal redirect with GET.
    Uri(Template),
    /// `@name`.
    Named(Arc<str>),
    /// Anything else: a redirect to it.
    Url(Template),
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        crate::config::setting::inherit!(self, outer: client_header_timeout, client_header_buffer_size,
            large_client_header_buffers, connection_pool_size, max_headers, ignore_invalid_headers,
            underscores_in_headers, merge_slashes, keepalive_timeout, keepalive_min_timeout, keepalive_requests, keepalive_time,
            lingering_close, lingering_time, lingering_timeout, reset_timedout_connection, send_timeout,
            tcp_nodelay, client_max_body_size, client_body_buffer_size, client_body_timeout,
            client_body_temp_path, client_body_in_file_only, client_body_early_read, keepalive_disable,
            msie_refresh, disable_symlinks, root, types, default_type, index, etag, if_modified_since, max_ranges,
            log_not_found, error_page, recursive_error_pages, server_tokens, chunked_transfer_encoding,
            absolute_redirect, server_name_in_redirect, port_in_redirect, msie_padding, internal,
            early_hints, limit_rate, limit_rate_after, error_log);
    }
}

impl Settings {
    /// Checks the sizes of a server against each other.
    pub fn finish(&self) -> Outcome {
        if self.large_client_header_buffers.size < *self.connection_pool_size {
            return fault!(
                "the \"large_client_header_buffers\" size must be equal to or greater than \
                 \"connection_pool_size\""
            );
        }
        Ok(())
    }

    /// `internal` has no argument: not saying it is saying no. An early read has no default either, nor
    /// has what has no effect.
    pub fn fill_absent(&mut self) {
        self.internal = Setting::of(false);
        self.connection_pool_size = Setting::of(512);
        self.client_body_early_read = Setting::of(Arc::new([]));
    }
}

/// `path [level1 [level2 [level3]]]`
pub fn temp_path(b: &Build, args: Args<'_>) -> Outcome<TempPath> {
    let mut levels = [0; 3];
    for (level, text) in levels.iter_mut().zip(args.from(1)) {
        *level = value::number(text)
            .and_then(|digits| u8::try_from(digits).ok())
            .filter(|digits| *digits > 0)
            .ok_or_else(|| args.invalid_value())?;
    }
    Ok(TempPath { path: b.path(args.at(0)), levels })
}

/// `…_hash_max_size` or `…_hash_bucket_size` of a table that nginx makes for every server, and for a
/// location that does not have the same one.
pub fn table_size(b: &mut Build, args: Args<'_>) -> Outcome {
    if b.http.current().is_none() { args.table_size() } else { args.number().map(drop) }
}

/// `number size`
pub fn buffers(args: Args<'_>) -> Outcome<Buffers> {
    let number = value::number(args.at(0)).filter(|number| *number > 0);
    let size = value::size(args.at(1)).filter(|size| *size > 0);
    match (number, size) {
        (Some(number), Some(size)) => Ok(Buffers { number, size }),
        _ => Err(args.invalid_value()),
    }
}

fn keepalive_timeout(args: Args<'_>) -> Outcome<KeepaliveTimeout> {
    let header = match args.all().get(1) {
        Some(text) => {
            let time = value::seconds(text).ok_or_else(|| args.invalid_value())?;
            Some(time.as_secs()).filter(|seconds| *seconds > 0)
        }
        None => None,
    };
    Ok(KeepaliveTimeout { idle: args.time()?, header })
}

/// `off | max=N [inactive=time]`
fn open_file_cache(args: Args<'_>) -> Outcome {
    let mut has_max = false;
    for text in args.all() {
        let is_valid = match text.split_once('=') {
            Some(("max", number)) => {
                has_max = true;
                value::number(number).is_some_and(|number| number > 0)
            }
            Some(("inactive", time)) => value::seconds(time).is_some(),
            _ => {
                has_max = true;
                text == "off"
            }
        };
        if !is_valid {
            return fault!("invalid \"open_file_cache\" parameter \"{text}\"");
        }
    }
    if has_max { Ok(()) } else { fault!("\"open_file_cache\" must have the \"max\" parameter") }
}

/// `off | on | if_not_owner [from=part]`
fn disable_symlinks(b: &mut Build, args: Args<'_>) -> Outcome<DisableSymlinks> {
    let (mut mode, mut from) = (None, None);
    for text in args.all() {
        match text.as_str() {
            "off" => mode = Some(SymlinkMode::Off),
            "on" => mode = Some(SymlinkMode::On),
            "if_not_owner" => mode = Some(SymlinkMode::IfNotOwner),
            other => match other.strip_prefix("from=") {
                Some(path) => from = Some(b.http.names.template(path)?),
                None => return fault!("invalid parameter \"{other}\""),
            },
        }
    }
    let Some(mode) = mode else {
        return fault!(
            "\"disable_symlinks\" must have \"off\", \"on\" or \"if_not_owner\" parameter"
        );
    };
    if args.len() == 2 && from.is_none() {
        return fault!("duplicate parameters \"{} {}\"", args.at(0), args.at(1));
    }
    if from.is_some() && mode == SymlinkMode::Off {
        return fault!("\"from=\" cannot be used with \"off\" parameter");
    }
    Ok(DisableSymlinks { mode, from })
}

/// `root` and `alias`.
fn root(b: &mut Build, args: Args<'_>, is_alias: bool) -> Outcome {
    let (name, other) = if is_alias { ("alias", "root") } else { ("root", "alias") };
    if let Some(earlier) = b.level().core.root.get() {
        return if earlier.is_alias() == is_alias {
            Err(args.duplicate())
        } else {
            fault!("\"{name}\" directive is duplicate, \"{other}\" directive was specified earlier")
        };
    }
    let maps = match b.http.current() {
        Some(Level { kind: Kind::Named, .. }) if is_alias => {
            return fault!("the \"alias\" directive cannot be used inside the named location");
        }
        Some(Level { kind: Kind::Regex(_), .. }) if is_alias => Maps::Nothing,
        Some(level) if is_alias => Maps::Behind(level.name.len()),
        _ => Maps::Whole,
    };
    let mut path = args.at(0);
    if !is_alias {
        path = path.strip_suffix('/').unwrap_or(path);
    }
    let mut template = b.http.names.template(path)?;
    for (variable, name) in
        [(Variable::DocumentRoot, "document_root"), (Variable::RealpathRoot, "realpath_root")]
    {
        if template.uses(&variable) {
            return fault!(
                "the ${name} variable cannot be used in the \"{}\" directive",
                args.name()
            );
        }
    }
    let mut below = b.path("").into_os_string().into_encoded_bytes();
    if below.last() != Some(&b'/') {
        below.push(b'/');
    }
    let mut prefix = Box::default();
    match template.parts.first_mut() {
        Some(Part::Literal(start)) if start.first() != Some(&b'/') => {
            below.extend_from_slice(start);
            *start = below.into();
        }
        Some(Part::Variable(_)) => prefix = below.into(),
        // An empty path is the prefix; that of `/` is nothing, to be followed by the URI.
        None if args.at(0).is_empty() => {
            template = Template::literal(b.path("").as_os_str().as_encoded_bytes());
        }
        Some(Part::Literal(_)) | None => {}
    }
    b.level().core.root.set(Root { path: template, maps, prefix });
    Ok(())
}

fn index(b: &mut Build, args: Args<'_>) -> Outcome {
    let (mut names, place) = (args.all().iter(), args.place());
    while let Some(name) = names.next() {
        if name.is_empty() {
            // Of several, nginx names the first one.
            return fault!("index \"{}\" in \"index\" directive is invalid", args.at(0));
        }
        if name.starts_with('/') && names.len() > 0 {
            let text = "only the last index in \"index\" directive should be absolute";
            b.warn(Some(place), text);
        }
        let template = b.http.names.template(name)?;
        b.level().core.index.push(template);
    }
    Ok(())
}

fn error_page(b: &mut Build, args: Args<'_>) -> Outcome<ErrorPage> {
    let Some((uri, rest)) = args.all().split_last() else { return Err(args.invalid_value()) };
    let (answer, codes) = match rest.split_last() {
        Some((answer, codes)) if answer.starts_with('=') => {
            if codes.is_empty() {
                return fault!("invalid value \"{answer}\"");
            }
            let code = answer.get(1..).unwrap_or_default();
            let status = if code.is_empty() {
                ErrorPageStatus::OfTarget
            } else {
                let code = value::number(code).and_then(|code| u16::try_from(code).ok());
                match code {
                    // `=0` is read as `=`.
                    Some(0) => ErrorPageStatus::OfTarget,
                    Some(code) => ErrorPageStatus::Code(code),
                    None => return fault!("invalid value \"{answer}\""),
                }
            };
            (status, codes)
        }
        _ => (ErrorPageStatus::Original, rest),
    };
    let codes: Vec<u16> = codes
        .iter()
        .map(|text| match value::number(text) {
            None | Some(499) => fault!("invalid value \"{text}\""),
            Some(code @ 300..=599) => Ok(code as u16),
            Some(_) => fault!("value \"{text}\" must be between 300 and 599"),
        })
        .collect::<Outcome<_>>()?;
    let target = if is_named_location(uri) {
        ErrorPageTarget::Named(uri.as_str().into())
    } else {
        let template = b.http.names.template(uri)?;
        if uri.starts_with('/') {
            ErrorPageTarget::Uri(template)
        } else {
            ErrorPageTarget::Url(template)
        }
    };
    Ok(ErrorPage { codes, answer, target })
}

/// Whether it is the name of a location as it stands: one with variables tells when it is expanded.
fn is_named_location(text: &str) -> bool {
    text.starts_with('@') && !text.contains('$')
}

fn try_files(b: &mut Build, args: Args<'_>) -> Outcome<TryFiles> {
    let Some((last, candidates)) = args.all().split_last() else {
        return Err(args.invalid_value());
    };
    let candidates = candidates
        .iter()
        .map(|text| {
            let (path, is_directory) = match text.strip_suffix('/') {
                Some(path) => (path, true),
                None => (text.as_str(), false),
            };
            Ok(Candidate { path: b.http.names.template(path)?, is_directory })
        })
        .collect::<Outcome<_>>()?;
    let last = if let Some(code) = last.strip_prefix('=') {
        match value::number(code) {
            Some(code @ 0..=999) => TryFilesLast::Code(code as u16),
            _ => return fault!("invalid code \"{last}\""),
        }
    } else if is_named_location(last) {
        TryFilesLast::Named(last.as_str().into())
    } else {
        TryFilesLast::Uri(b.http.names.template(last)?)
    };
    Ok(TryFiles { candidates, last })
}

/// `type extension ...;`
fn types_entry(b: &mut Build, args: Args<'_>) {
    let mime: Arc<str> = args.name().into();
    for extension in args.all() {
        let key = extension.to_ascii_lowercase().into_bytes().into();
        if let Some(previous) = b.http.types.insert(key, mime.clone()) {
            let text = format!(
                "duplicate extension \"{extension}\", content type: \"{mime}\", previous content \
                 type: \"{previous}\""
            );
            b.warn(Some(args.place()), text);
        }
    }
}

fn close_server(b: &mut Build, _: &Place) -> Outcome {
    server::finish_server(b)?;
    b.http.close();
    Ok(())
}

fn open_location(b: &mut Build, args: Args<'_>) -> Outcome {
    let (modifier, name) = match args.all() {
        [modifier, name] => match modifier.as_str() {
            "=" | "^~" | "~" | "~*" => (modifier.as_str(), name.as_str()),
            other => return fault!("invalid location modifier \"{other}\""),
        },
        _ => split_modifier(args.at(0)),
    };
    let kind = match modifier {
        "=" => Kind::Exact,
        "^~" => Kind::Prefix { no_regex: true },
        "~" => Kind::Regex(Arc::new(b.http.names.regex(name, false)?)),
        "~*" => Kind::Regex(Arc::new(b.http.names.regex(name, true)?)),
        _ if name.starts_with('@') => Kind::Named,
        _ => Kind::Prefix { no_regex: false },
    };
    let mut unused = None;
    if let Some(outer) = b.http.current() {
        let around = &outer.name;
        match outer.kind {
            Kind::Exact => {
                return fault!(
                    "location \"{name}\" cannot be inside the exact location \"{around}\""
                );
            }
            Kind::Named => {
                return fault!(
                    "location \"{name}\" cannot be inside the named location \"{around}\""
                );
            }
            Kind::Server => {}
            Kind::Prefix { .. } | Kind::Regex(_) | Kind::If | Kind::LimitExcept(_) => {
                if matches!(kind, Kind::Named) {
                    return fault!("named location \"{name}\" can be on the server level only");
                }
                if !matches!(kind, Kind::Regex(_)) && !name.starts_with(&**around) {
                    return fault!("location \"{name}\" is outside location \"{around}\"");
                }
                if !matches!(kind, Kind::Regex(_)) && matches!(outer.kind, Kind::Regex(_)) {
                    let text = "is never used: in a regex location only regexes are looked at";
                    unused = Some(format!("location \"{name}\" {text}"));
                }
            }
        }
    }
    if let Some(warning) = unused {
        b.warn(Some(args.place()), warning);
    }
    b.http.open(kind, name, args.place());
    Ok(())
}

/// The methods that `limit_except` knows.
const METHODS: [&str; 14] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "MKCOL",
    "COPY",
    "MOVE",
    "OPTIONS",
    "PROPFIND",
    "PROPPATCH",
    "LOCK",
    "UNLOCK",
    "PATCH",
];

/// `limit_except method ... {`
fn limit_except(b: &mut Build, args: Args<'_>) -> Outcome {
    if b.http.has_limit_except() {
        return Err(args.duplicate());
    }
    let mut methods: Vec<Box<str>> = Vec::new();
    for text in args.all() {
        let Some(method) = METHODS.iter().find(|method| method.eq_ignore_ascii_case(text)) else {
            return fault!("invalid method \"{text}\"");
        };
        methods.push((*method).into());
        if *method == "GET" {
            methods.push("HEAD".into());
        }
    }
    let name = b.http.current().map(|level| level.name.clone()).unwrap_or_default();
    b.http.open(Kind::LimitExcept(methods.into()), &name, args.place());
    Ok(())
}

/// `=/a`, `^~/a`, `~a`, `~*a`: a modifier may be glued to the name.
fn split_modifier(name: &str) -> (&str, &str) {
    for modifier in ["=", "^~", "~*", "~"] {
        if let Some(name) = name.strip_prefix(modifier) {
            return (modifier, name);
        }
    }
    ("", name)
}
