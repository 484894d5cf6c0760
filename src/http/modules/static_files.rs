//! Files: the content phase of a location without a handler. `index` for a directory, the file
//! itself otherwise (http-core, section 10).

pub mod conditional;
mod content;
pub mod range;
mod symlinks;

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use smallvec::SmallVec;

use self::conditional::Conditions;
use self::content::{Content, ReadError};
use self::range::{Layout, Selection};
use self::symlinks::{OpenError, Symlinks};
use super::core::{self, SymlinkMode};
use super::headers::{self, lines};
use crate::error_log::{Level, escape};
use crate::http::action::Action;
use crate::http::body;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::phase::Outcome;
use crate::http::request::Request;
use crate::http::response::{self, Head, Length, Status};
use crate::http::value;
use crate::http::variable::Part;
use crate::http1::header::Known;
use crate::http1::request::{Method, Version};
use crate::http1::uri::escape_uri;
use crate::http1::{date, encode};
use crate::io::select::yield_now;

pub use conditional::{Validators, Verdict, fuzz_conditional};
pub use range::fuzz_range;

/// Answers with the file that the current URI names.
pub async fn serve(c: &Connection, r: &mut Request) -> Result<Outcome, Close> {
    if !matches!(r.method, Method::Get | Method::Head | Method::Post) {
        return Ok(Outcome::Status(405));
    }
    if let Some(status) = misplaced_alias(c, r) {
        return Ok(Outcome::Status(status));
    }
    let mut path = Vec::new();
    value::request_filename(c, r, &mut path);
    if leaves_root(c, r, &path) {
        return Ok(Outcome::Status(404));
    }
    if r.has_given_up() {
        return Ok(Outcome::Status(500));
    }
    if r.uri.ends_with(b"/") {
        return Ok(index(c, r, &path));
    }
    let file = match open(&path, symlinks(c, r, &path)) {
        Ok(Opened::File(file)) => file,
        Ok(Opened::Directory) => {
            r.response.location = Some(directory_location(&r.uri, &r.args));
            return Ok(Outcome::Status(301));
        }
        Ok(Opened::Special) => {
            let path = escape(&path);
            c.log(r, Level::Crit, format_args!("\"{path}\" is not a regular file"));
            return Ok(Outcome::Status(404));
        }
        Err(failed) => return Ok(Outcome::Status(refuse(c, r, &path, &failed))),
    };
    if r.method == Method::Post {
        return Ok(Outcome::Status(405));
    }
    if let Some(status) = body::begin_discard(c, r).await? {
        return Ok(Outcome::Status(status));
    }
    send(c, r, &file, &path).await
}

/// Whether a path that begins with the root of the request's location goes up from where the
/// configuration leads: `alias /pub/` of `/i` does with `/i../secret`, and a root does when a rewrite
/// puts an argument into the URI. The log is told.
fn leaves_root(c: &Connection, r: &Request, path: &[u8]) -> bool {
    if memchr::memmem::find(path, b"..").is_none() || parents(path).next().is_none() {
        return false;
    }
    // What of the path is written in the configuration.
    let mut written: SmallVec<[Range<usize>; 4]> = SmallVec::new();
    let (settings, mut root) = (&c.settings(r).core.root, Vec::new());
    for part in &settings.path.parts {
        let start = root.len();
        match part {
            Part::Literal(text) => {
                root.extend_from_slice(text);
                written.push(start..root.len());
            }
            Part::Variable(variable) => {
                value::append(variable, c, r, &mut root);
            }
        }
    }
    let prefix = settings.before(&root).len();
    for part in &mut written {
        *part = part.start.saturating_add(prefix)..part.end.saturating_add(prefix);
    }
    written.push(0..prefix);
    let leaves = goes_up(path, &written);
    if leaves {
        let text = format_args!("unsafe path \"{}\" was detected", escape(path));
        c.log(r, Level::Error, text);
    }
    leaves
}

/// Whether one of the `..` in a path is not, both dots, in one of these parts of it.
fn goes_up(path: &[u8], written: &[Range<usize>]) -> bool {
    parents(path).any(|up| !written.iter().any(|part| part.start <= up.start && up.end <= part.end))
}

/// Where in a path a segment is `..`.
fn parents(path: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0_usize;
    path.split(|byte| *byte == b'/').filter_map(move |segment| {
        let start = next;
        let end = start.saturating_add(segment.len());
        next = end.saturating_add(1);
        (segment == b"..").then_some(start..end)
    })
}

/// The status where an alias would stand for a name that the URI no longer begins with.
pub fn misplaced_alias(c: &Connection, r: &Request) -> Option<u16> {
    if !r.rewritten_in_place || !c.settings(r).core.root.is_alias() {
        return None;
    }
    let name = &r.generation.http().location(r.location).name;
    let text =
        format_args!("\"alias\" cannot be used in location \"{name}\" where URI was rewritten");
    c.log(r, Level::Alert, text);
    Some(500)
}

/// The first index file of a directory, by an internal redirect. `directory` ends in `/`, but for
/// an alias without one.
fn index(c: &Connection, r: &Request, directory: &[u8]) -> Outcome {
    let generation = Rc::clone(&r.generation);
    let core = &generation.http().location(r.location).settings.core;
    let mut is_directory_tested = false;
    for name in core.index.iter() {
        let name = value::expanded(name, c, r);
        if name.starts_with(b"/") {
            return Outcome::Internal { uri: name, args: r.known_args().cloned() };
        }
        let path = [directory, &name].concat();
        if leaves_root(c, r, &path) {
            return Outcome::Status(404);
        }
        let Err(failed) = symlinks(c, r, &path).stat(&path) else {
            return Outcome::Internal {
                uri: [r.uri.as_slice(), &name].concat(),
                args: r.known_args().cloned(),
            };
        };
        match failed.error {
            Errno::LOOP => return Outcome::Status(403),
            error @ (Errno::NOTDIR | Errno::NAMETOOLONG | Errno::ACCESS) => {
                return Outcome::Status(refuse_index(c, r, &path, error));
            }
            _ => {}
        }
        // A missing index file is looked past only in a directory that is there.
        if !is_directory_tested {
            if let Some(status) = test_directory(c, r, directory, &path) {
                return Outcome::Status(status);
            }
            is_directory_tested = true;
        }
        if failed.error != Errno::NOENT {
            tell_failed(c, r, &path, &failed);
            return Outcome::Status(500);
        }
    }
    let text = format_args!("directory index of \"{}\" is forbidden", escape(directory));
    c.log(r, Level::Error, text);
    Outcome::Status(403)
}

/// The status that ends the search for an index when `directory` is none.
fn test_directory(c: &Connection, r: &Request, directory: &[u8], index: &[u8]) -> Option<u16> {
    let directory = match directory.strip_suffix(b"/") {
        Some(stripped) if !stripped.is_empty() => stripped,
        _ => directory,
    };
    match symlinks(c, r, directory).stat(directory) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => None,
        Ok(_) => {
            let text = format_args!("\"{}\" is not a directory", escape(directory));
            c.log(r, Level::Alert, text);
            Some(500)
        }
        Err(OpenError { error: Errno::LOOP, .. }) => Some(403),
        Err(OpenError { error: error @ Errno::NOENT, .. }) => {
            Some(refuse_index(c, r, index, error))
        }
        Err(failed) => {
            tell_failed(c, r, directory, &failed);
            Some(500)
        }
    }
}

fn refuse_index(c: &Connection, r: &Request, path: &[u8], error: Errno) -> u16 {
    let (path, is_forbidden) = (escape(path), error == Errno::ACCESS);
    let error = io::Error::from(error);
    if is_forbidden {
        c.log_errno(r, Level::Error, format_args!("\"{path}\" is forbidden"), &error);
        return 403;
    }
    if *c.settings(r).core.log_not_found {
        c.log_errno(r, Level::Error, format_args!("\"{path}\" is not found"), &error);
    }
    404
}

/// What a path led to.
#[derive(Debug)]
enum Opened {
    File(OpenFile),
    Directory,
    /// A FIFO, a device.
    Special,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// Bytes.
    length: u64,
    /// Seconds since 1970.
    modified: i64,
}

/// How links in `path` are taken in the request's location (`disable_symlinks`).
fn symlinks(c: &Connection, r: &Request, path: &[u8]) -> Symlinks {
    let setting = &*c.settings(r).core.disable_symlinks;
    if setting.mode == SymlinkMode::Off {
        return Symlinks::FOLLOWED;
    }
    let from = setting.from.as_ref().map(|from| value::expanded(from, c, r)).unwrap_or_default();
    Symlinks::new(setting.mode, &from, path)
}

/// Whether there is a directory, or else anything that is none, at `path`: what `try_files` asks.
pub fn is_there(c: &Connection, r: &Request, path: &[u8], wants_directory: bool) -> bool {
    if leaves_root(c, r, path) {
        return false;
    }
    look_up(c, r, path)
        .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir() == wants_directory)
}

/// What is at a path that need not be there. When that cannot be found out, it is told.
pub fn look_up(c: &Connection, r: &Request, path: &[u8]) -> Option<Stat> {
    match symlinks(c, r, path).stat(path) {
        Ok(stat) => Some(stat),
        Err(OpenError { error: Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG, .. }) => None,
        Err(failed) => {
            tell_failed(c, r, path, &failed);
            None
        }
    }
}

fn tell_failed(c: &Connection, r: &Request, path: &[u8], failed: &OpenError) {
    let text = format_args!("{} \"{}\" failed", failed.call, escape(path));
    c.log_errno(r, Level::Crit, text, &failed.error.into());
}

/// The descriptor is asked what it is, so that nothing can be exchanged in between.
fn open(path: &[u8], symlinks: Symlinks) -> Result<Opened, OpenError> {
    let file = symlinks.open(path)?;
    let stat = rustix::fs::fstat(&file).map_err(|error| OpenError { call: "fstat()", error })?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Opened::File(OpenFile {
            file: file.into(),
            length: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: stat.st_mtime,
        }),
        FileType::Directory => Opened::Directory,
        _ => Opened::Special,
    })
}

/// The status for a file that cannot be opened; the log says why.
fn refuse(c: &Connection, r: &Request, path: &[u8], failed: &OpenError) -> u16 {
    let (status, level) = match failed.error {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => (404, Level::Error),
        Errno::ACCESS | Errno::MLINK | Errno::LOOP => (403, Level::Error),
        _ => (500, Level::Crit),
    };
    if status != 404 || *c.settings(r).core.log_not_found {
        let text = format_args!("{} \"{}\" failed", failed.call, escape(path));
        c.log_errno(r, level, text, &failed.error.into());
    }
    status
}

/// Where a directory's URI without its last slash leads: `ESCAPED-URI/?ARGS`.
fn directory_location(uri: &[u8], args: &[u8]) -> Vec<u8> {
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "lengths in memory: isize::MAX at most, each"
    )]
    let mut location = Vec::with_capacity(uri.len() + 2 + args.len());
    escape_uri(uri, &mut location);
    location.push(b'/');
    if !args.is_empty() {
        location.push(b'?');
        location.extend_from_slice(args);
    }
    location
}

/// `"MTIME-SIZE"`, lower hex.
fn etag(file: &OpenFile) -> String {
    format!("\"{:x}-{:x}\"", file.modified, file.length)
}

async fn send(
    c: &Connection,
    r: &mut Request,
    file: &OpenFile,
    path: &[u8],
) -> Result<Outcome, Close> {
    body::tell_continue(c, r).await?;
    c.action.set(Action::SendingResponse);
    let etag = c.settings(r).core.etag.then(|| etag(file));
    let current = Validators {
        last_modified: u64::try_from(file.modified).ok(),
        etag: etag.as_deref().map(str::as_bytes),
    };
    let is_allowed = |if_range: &[u8]| is_range_allowed(c, r, if_range, &current);
    let plan = match decide(r, &c.settings(r).core, file.length, &current, is_allowed) {
        Decision::Send(plan) => plan,
        Decision::PreconditionFailed => return Ok(Outcome::Status(412)),
        Decision::NotSatisfiable => {
            keep_for_not_satisfiable(c, r, &current, file.length);
            return Ok(Outcome::Status(416));
        }
    };
    write_head(c, r, &plan, &current);
    let layout = match plan.layout {
        Some(layout) if !r.response.is_bodiless && plan.status != 304 => layout,
        _ => {
            response::send_head(c, r, &mut []).await?;
            response::end_body(c, r).await?;
            return Ok(Outcome::Done);
        }
    };
    let mut content = Content::new(&file.file, layout);
    loop {
        match content.next_piece() {
            Ok([]) if r.response.head_sent => break,
            Ok(first) if !r.response.head_sent => {
                response::send_head(c, r, &mut [IoSlice::new(first)]).await?;
            }
            Ok(piece) => {
                if r.response.chunked {
                    response::send_body(c, r, &mut [IoSlice::new(piece)]).await?;
                } else {
                    let (wanted, sent) = (piece.len(), response::send_some(c, r, piece)?);
                    if sent < wanted {
                        // While it is waited for, a client takes no memory for what is in the file.
                        content.put_back(wanted.saturating_sub(sent));
                        response::ready(c, r).await?;
                    }
                }
                // A fast client's socket never fills: others get their turn all the same.
                yield_now().await;
            }
            Err(error) => {
                let path = escape(path);
                match &error {
                    ReadError::Io(e) => {
                        c.log_errno(r, Level::Crit, format_args!("pread() \"{path}\" failed"), e);
                    }
                    ReadError::Short { .. } => {
                        c.log(r, Level::Alert, format_args!("{error} from \"{path}\""));
                    }
                }
                return Err(Close::Truncated);
            }
        }
    }
    response::end_body(c, r).await?;
    Ok(Outcome::Done)
}

#[derive(Debug)]
enum Decision {
    Send(Plan),
    /// 412
    PreconditionFailed,
    /// 416
    NotSatisfiable,
}

/// A file's response before its head is written.
#[derive(Debug)]
struct Plan {
    status: u16,
    content_type: Option<Arc<str>>,
    last_modified: Option<u64>,
    /// `None`: no body, and nothing is said of its length.
    layout: Option<Layout>,
    range_line: Option<RangeLine>,
}

#[derive(Debug, PartialEq, Eq)]
enum RangeLine {
    AcceptRanges,
    /// With its value.
    ContentRange(String),
}

/// What the status and the request's headers make of a file of `length` bytes. Only a 200, also
/// that of `error_page … =200`, can become 206, 304, 412 or 416.
fn decide(
    r: &Request,
    core: &core::Settings,
    length: u64,
    current: &Validators<'_>,
    is_range_allowed: impl FnOnce(&[u8]) -> bool,
) -> Decision {
    let header = |known| r.head.headers.find(known).map(|field| r.text(field.value));
    let whole = Plan {
        status: r.response.status_override.unwrap_or(200),
        content_type: core::content_type(core, &r.uri),
        last_modified: current.last_modified,
        layout: Some(Layout::plain(0..length)),
        range_line: None,
    };
    match whole.status {
        200 => {}
        204 => {
            let empty = Plan { content_type: None, last_modified: None, layout: None, ..whole };
            return Decision::Send(empty);
        }
        206 | 304 => return Decision::Send(whole),
        _ => return Decision::Send(Plan { last_modified: None, ..whole }),
    }

    match verdict(r, core, current) {
        Verdict::Proceed => {}
        Verdict::PreconditionFailed => return Decision::PreconditionFailed,
        Verdict::NotModified => {
            let unchanged = Plan { status: 304, content_type: None, layout: None, ..whole };
            return Decision::Send(unchanged);
        }
    }

    if *core.max_ranges == 0 {
        return Decision::Send(whole);
    }
    let selection = match header(Known::Range) {
        Some(range)
            if r.version() > Version::Http09
                && header(Known::IfRange).is_none_or(is_range_allowed) =>
        {
            range::select(range, length, *core.max_ranges)
        }
        _ => Selection::Whole,
    };
    Decision::Send(match selection {
        Selection::NotSatisfiable => return Decision::NotSatisfiable,
        Selection::Whole => Plan { range_line: Some(RangeLine::AcceptRanges), ..whole },
        Selection::Ranges(ranges) => {
            if let [range] = ranges.as_slice() {
                let content_range = range::content_range(range, length);
                Plan {
                    status: 206,
                    layout: Some(Layout::plain(range.clone())),
                    range_line: Some(RangeLine::ContentRange(content_range)),
                    ..whole
                }
            } else {
                let boundary = boundary();
                let part_type = whole.content_type.as_deref().map(str::as_bytes);
                let layout = Layout::multipart(ranges, length, part_type, &boundary);
                let content_type = format!("multipart/byteranges; boundary={boundary}");
                Plan {
                    status: 206,
                    content_type: Some(content_type.into()),
                    layout: Some(layout),
                    ..whole
                }
            }
        }
    })
}

/// What the request's conditions say to a 200 with these validators.
pub fn verdict(r: &Request, core: &core::Settings, current: &Validators<'_>) -> Verdict {
    let header = |known| r.head.headers.find(known).map(|field| r.text(field.value));
    let conditions = Conditions {
        matches: header(Known::IfMatch),
        none_match: header(Known::IfNoneMatch),
        modified_since: header(Known::IfModifiedSince),
        unmodified_since: header(Known::IfUnmodifiedSince),
    };
    conditional::evaluate(&conditions, current, *core.if_modified_since)
}

/// Whether `If-Range` lets the ranges of a response with these validators stand. It is compared with
/// what the client is told: a line that the configuration adds takes the place of one of them.
pub fn is_range_allowed(
    c: &Connection,
    r: &Request,
    if_range: &[u8],
    current: &Validators<'_>,
) -> bool {
    let etag = headers::added(c, r, headers::ETAG);
    let last_modified = headers::added(c, r, headers::LAST_MODIFIED);
    let told = Validators {
        etag: etag.as_deref().map_or(current.etag, |etag| Some(etag).filter(|e| !e.is_empty())),
        last_modified: last_modified.as_deref().map_or(current.last_modified, date::parse),
    };
    conditional::is_range_allowed(if_range, &told)
}

/// Twenty digits, as nginx's, but none that a file's author could foresee.
fn boundary() -> String {
    format!("{:020}", RandomState::new().build_hasher().finish())
}

fn write_head(c: &Connection, r: &mut Request, plan: &Plan, current: &Validators<'_>) {
    let location = r.response.location.take();
    let head = Head {
        status: Status::Settled(plan.status),
        content_type: plan.content_type.as_deref().map(str::as_bytes),
        length: plan.layout.as_ref().map_or(Length::None, |layout| Length::Known(layout.length())),
        last_modified: plan.last_modified,
        location: location.as_deref(),
        ..Head::default()
    };
    response::begin(c, r, &head);
    if let Some(etag) = current.etag {
        encode::header(b"ETag", etag, &mut r.response.head);
    }
    match &plan.range_line {
        None => response::finish(c, r),
        Some(RangeLine::AcceptRanges) => {
            response::finish_with(c, r, Some((b"Accept-Ranges", b"bytes")));
        }
        Some(RangeLine::ContentRange(range)) => {
            response::finish_with(c, r, Some((b"Content-Range", range.as_bytes())));
        }
    }
}

/// A range that is not in the file: what stays of the response is there for the page in its place.
fn keep_for_not_satisfiable(
    c: &Connection,
    r: &mut Request,
    current: &Validators<'_>,
    length: u64,
) {
    r.response.location = None;
    if let Some(modified) = current.last_modified {
        let date = response::http_date(modified);
        encode::header(b"Last-Modified", date.as_bytes(), &mut r.response.kept.lines);
    }
    settle_not_satisfiable(c, r, length);
}

/// Of the lines kept of a response that has nothing of a range (416), those stay that are not about what
/// it was of. The configuration has added its own by then, as for a 200, and the page says how long the
/// whole is (RFC 9110 section 15.5.17).
pub fn settle_not_satisfiable(c: &Connection, r: &mut Request, length: u64) {
    std::mem::swap(&mut r.response.head, &mut r.response.kept.lines);
    r.response.list_at = 0;
    headers::put_but_always(c, r);
    std::mem::swap(&mut r.response.head, &mut r.response.kept.lines);
    let kept = &mut r.response.kept.lines;
    for name in [&b"etag"[..], b"last-modified", b"content-range"] {
        lines::remove_before(kept, usize::MAX, name);
    }
    encode::header(b"Content-Range", range::content_range_of_none(length).as_bytes(), kept);
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::error_log::Files;
    use crate::http::modules::access_log::LogWriters;
    use crate::http::server::AddressId;
    use crate::http1::Progress;
    use crate::http1::request::{self, Limits};
    use crate::modules::{self, LoadOptions};
    use crate::shard::Generation;

    /// A directory of a test's own, gone with it.
    pub struct TempDir(PathBuf);

    impl TempDir {
        pub fn path(&self) -> &Path {
            &self.0
        }

        pub fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("ringx-static-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            TempDir(path)
        }

        /// Makes a file and tells its path.
        pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn open_path(path: &Path) -> Result<Opened, OpenError> {
        open(path.as_os_str().as_bytes(), Symlinks::FOLLOWED)
    }

    #[test]
    fn what_a_path_leads_to() {
        let directory = TempDir::new();
        let path = directory.file("a", b"hello");
        let Ok(Opened::File(file)) = open_path(&path) else { panic!("not a file") };
        assert_eq!(file.length, 5);
        assert!(file.modified > 1_600_000_000);
        assert!(matches!(open_path(&directory.0), Ok(Opened::Directory)));
        assert!(matches!(open(b"/dev/null", Symlinks::FOLLOWED), Ok(Opened::Special)));

        let error = |path: PathBuf| open_path(&path).unwrap_err().error;
        assert_eq!(error(directory.0.join("b")), Errno::NOENT);
        assert_eq!(error(path.join("b")), Errno::NOTDIR);
        assert_eq!(error(directory.0.join("n".repeat(300))), Errno::NAMETOOLONG);
        std::os::unix::fs::symlink("loop", directory.0.join("loop")).unwrap();
        assert_eq!(error(directory.0.join("loop")), Errno::LOOP);
    }

    #[test]
    fn a_fifo_does_not_block() {
        let directory = TempDir::new();
        let path = directory.0.join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(matches!(open_path(&path), Ok(Opened::Special)));
    }

    #[test]
    fn entity_tags() {
        let directory = TempDir::new();
        let path = directory.file("a", &[0; 100]);
        let Ok(Opened::File(file)) = open_path(&path) else { panic!("not a file") };
        let file = OpenFile { modified: 0x6553_f100, ..file };
        assert_eq!(etag(&file), "\"6553f100-64\"");
    }

    #[test]
    fn only_the_configuration_goes_up() {
        // `[…]` is written in the configuration.
        for (text, leaves) in [
            ("[/root]/a/b", false),
            ("[/root]/../a", true),
            ("[/root]/a/..", true),
            ("[/root/]../a", true),
            ("[/root/].../a", false),
            ("[/root].../a", false),
            ("[/root]..a/..b/c../d", false),
            ("[/root/.]./a", true),
            ("[/root/]x[.]./a", false),
            ("[/a/../root]/b", false),
            ("[/a/../root/]../b", true),
            ("[/a/..]/b", false),
            ("[/a/..]", false),
            ("[/root/]x[/../b]/c", false),
            ("[/root/]x[/../b/]..", true),
            ("/..", true),
            ("../a", true),
            ("[..]/a", false),
            ("[]", false),
        ] {
            let (mut path, mut written, mut start) = (Vec::new(), Vec::new(), 0);
            for byte in text.bytes() {
                match byte {
                    b'[' => start = path.len(),
                    b']' => written.push(start..path.len()),
                    byte => path.push(byte),
                }
            }
            assert_eq!(goes_up(&path, &written), leaves, "{text}");
        }
    }

    #[test]
    fn the_slash_of_a_directory() {
        assert_eq!(directory_location(b"/a b", b""), b"/a%20b/");
        assert_eq!(directory_location(b"/a?b", b"c=d e"), b"/a%3Fb/?c=d e");
    }

    /// What is decided about a file `/a.html` of 100 bytes.
    fn decide_for(directives: &str, head: &str, status_override: Option<u16>) -> Decision {
        let directory = TempDir::new();
        let config = format!(
            "events {{}} http {{ access_log off; types {{ text/html html; }} {directives} \
             server {{ listen 127.0.0.1:1; }} }}"
        );
        let options = LoadOptions {
            file: directory.file("conf", config.as_bytes()),
            prefix: directory.0.clone(),
            globals: None,
            error_log: Some("/dev/null".into()),
        };
        let config = Arc::new(modules::load(&options).unwrap().config);
        let logs = LogWriters::default();
        let generation = Rc::new(Generation::new(config, &Files::default(), &logs).unwrap());

        let mut r = Request::new(Rc::clone(&generation), AddressId(0));
        r.buffer.extend(format!("GET /a.html HTTP/1.1\r\nHost: h\r\n{head}\r\n").as_bytes());
        let limits = Limits {
            first: 1 << 10,
            number: 4,
            size: 8 << 10,
            count_max: 100,
            ignore_invalid_headers: true,
            underscores_in_headers: false,
        };
        let parsed = request::parse(r.buffer.as_slice(), &limits.into(), &mut r.head);
        assert!(matches!(parsed, Ok(Progress::Complete { .. })));
        r.uri.extend_from_slice(b"/a.html");
        r.response.status_override = status_override;
        let current =
            Validators { last_modified: Some(1_700_000_000), etag: Some(b"\"6553f100-64\"") };
        let core = &generation.http().location(r.location).settings.core;
        let is_range_allowed = |value: &[u8]| conditional::is_range_allowed(value, &current);
        decide(&r, core, 100, &current, is_range_allowed)
    }

    fn plan_for(directives: &str, head: &str, status_override: Option<u16>) -> Plan {
        match decide_for(directives, head, status_override) {
            Decision::Send(plan) => plan,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_usual_head() {
        for status_override in [None, Some(200)] {
            let plan = plan_for("", "", status_override);
            assert_eq!(plan.status, 200);
            assert_eq!(plan.content_type.as_deref(), Some("text/html"));
            assert_eq!(plan.last_modified, Some(1_700_000_000));
            assert_eq!(plan.layout, Some(Layout::plain(0..100)));
            assert_eq!(plan.range_line, Some(RangeLine::AcceptRanges));
        }
    }

    #[test]
    fn an_error_page_is_whole_and_unconditional() {
        let head = "If-None-Match: *\r\nIf-Match: \"x\"\r\nRange: bytes=0-1\r\n";
        for (status, is_dated) in [(404, false), (500, false), (206, true), (304, true)] {
            let plan = plan_for("", head, Some(status));
            assert_eq!(plan.status, status);
            assert_eq!(plan.last_modified.is_some(), is_dated, "{status}");
            assert_eq!(plan.layout, Some(Layout::plain(0..100)));
            assert_eq!(plan.range_line, None);
        }
        let plan = plan_for("", head, Some(204));
        assert_eq!((plan.status, plan.content_type, plan.layout), (204, None, None));
    }

    #[test]
    fn a_client_with_the_file_is_told_so() {
        let plan = plan_for("", "If-None-Match: \"6553f100-64\"\r\nRange: bytes=0-1\r\n", None);
        assert_eq!(plan.status, 304);
        assert_eq!(plan.last_modified, Some(1_700_000_000));
        assert_eq!((plan.content_type, plan.layout, plan.range_line), (None, None, None));

        let decision = decide_for("", "If-Match: \"x\"\r\n", None);
        assert!(matches!(decision, Decision::PreconditionFailed));
    }

    #[test]
    fn ranges_of_a_file() {
        let plan = plan_for("", "Range: bytes=1-2\r\n", None);
        assert_eq!(plan.status, 206);
        assert_eq!(plan.content_type.as_deref(), Some("text/html"));
        assert_eq!(plan.layout, Some(Layout::plain(1..3)));
        assert_eq!(plan.range_line, Some(RangeLine::ContentRange("bytes 1-2/100".into())));

        let plan = plan_for("", "Range: bytes=1-2,5-6\r\n", Some(200));
        assert_eq!(plan.status, 206);
        let content_type = plan.content_type.unwrap();
        let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let ranges = [1..3, 5..7].into_iter().collect();
        let layout = Layout::multipart(ranges, 100, Some(b"text/html"), boundary);
        assert_eq!(plan.layout, Some(layout));
        assert_eq!(plan.range_line, None);

        let decision = decide_for("", "Range: bytes=100-\r\n", None);
        assert!(matches!(decision, Decision::NotSatisfiable));
        let plan = plan_for("", "Range: bytes=1-2\r\nIf-Range: \"x\"\r\n", None);
        assert_eq!(plan.range_line, Some(RangeLine::AcceptRanges));
        let plan = plan_for("max_ranges 0;", "Range: bytes=1-2\r\n", None);
        assert_eq!((plan.status, plan.range_line), (200, None));
    }

    #[test]
    fn boundaries_are_twenty_digits() {
        let (first, second) = (boundary(), boundary());
        assert!(first.len() == 20 && first.bytes().all(|byte| byte.is_ascii_digit()), "{first}");
        assert_ne!(first, second);
    }
}
