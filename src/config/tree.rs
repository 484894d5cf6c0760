//! Files to one tree of statements: includes stand expanded where they were written, and what
//! could not be read becomes the tree's last node, so that errors are met in reading order.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::diagnostic::{Diagnostic, Fault, Place};
use super::lexer::{Item, Lexer, Source, Terminator};
use crate::error_log::Level;

/// Blocks within blocks; no configuration that is accepted comes near it.
const DEPTH_MAX: usize = 100;
/// Includes within includes. nginx stops at its limit of open files.
const INCLUDE_DEPTH_MAX: usize = 100;

/// What stands for bytes that are no UTF-8: in a comment they do no harm.
const NO_TEXT: char = char::REPLACEMENT_CHARACTER;

/// Where configuration text is read from.
pub trait Files {
    /// With a [`char::REPLACEMENT_CHARACTER`] for what is not UTF-8.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The files a pattern of `* ? [` names, sorted.
    fn matching(&self, pattern: &Path) -> Vec<PathBuf>;
}

#[derive(Debug)]
pub enum Node {
    Statement(Statement),
    /// Nothing was read after this.
    Failure(Diagnostic),
}

#[derive(Debug)]
pub struct Statement {
    /// The name and its arguments; at least one word.
    pub words: Vec<String>,
    pub place: Place,
    pub block: Option<Block>,
}

#[derive(Debug, Default)]
pub struct Block {
    pub nodes: Vec<Node>,
    /// The closing brace; `None` when the text ended before it.
    pub end: Option<Place>,
}

impl Statement {
    pub fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }
}

/// A configuration as read.
#[derive(Debug, Default)]
pub struct Tree {
    pub nodes: Vec<Node>,
    /// Every file with its text, once each, in reading order.
    pub files: Vec<(PathBuf, String)>,
}

impl Tree {
    /// Reads the main file and all it includes.
    pub fn read(main: &Path, files: &dyn Files) -> Tree {
        let mut reader = Reader::below(main, files);
        let nodes = match reader.text_of(main, None) {
            Ok(text) => reader.file(main, &text),
            Err(failed) => vec![Node::Failure(failed)],
        };
        Tree { nodes, files: reader.read }
    }

    /// Reads the argument of `-g`, and the files it includes.
    pub fn globals(text: &str, main: &Path, files: &dyn Files) -> Tree {
        let mut reader = Reader::below(main, files);
        let mut nodes = Vec::new();
        for node in Tree::parameter(text).nodes {
            match node {
                Node::Statement(Statement { words, place, .. }) => {
                    reader.simple(words, place, &mut nodes);
                }
                Node::Failure(_) => nodes.push(node),
            }
            if failed(&nodes) {
                break;
            }
        }
        Tree { nodes, files: reader.read }
    }

    /// Reads simple directives.
    pub fn parameter(text: &str) -> Tree {
        let mut lexer = Lexer::new(text, Source::Parameter);
        let mut nodes = Vec::new();
        loop {
            let text = match lexer.next_item() {
                Ok(Item::Statement { words, terminator: Terminator::Semicolon }) => {
                    let place = Place::CommandLine;
                    nodes.push(Node::Statement(Statement { words, place, block: None }));
                    continue;
                }
                Ok(Item::End) => break,
                Ok(Item::Statement { .. }) => {
                    "block directives are not supported in -g option".to_owned()
                }
                Ok(Item::BlockEnd) => "unexpected \"}\"".to_owned(),
                Err(error) => error.to_string(),
            };
            nodes.push(Node::Failure(Fault::new(text).located(&Place::CommandLine)));
            break;
        }
        Tree { nodes, files: Vec::new() }
    }
}

struct Reader<'a> {
    files: &'a dyn Files,
    /// What relative includes are relative to.
    directory: &'a Path,
    read: Vec<(PathBuf, String)>,
    depth: usize,
    includes: usize,
}

impl<'a> Reader<'a> {
    fn below(main: &'a Path, files: &'a dyn Files) -> Self {
        let directory = main.parent().unwrap_or(Path::new(""));
        Reader { files, directory, read: Vec::new(), depth: 0, includes: 0 }
    }
}

impl Reader<'_> {
    /// The text of a file that is included at a place, or is the main one.
    fn text_of(&mut self, path: &Path, place: Option<&Place>) -> Result<String, Diagnostic> {
        let text = self.files.read(path).map_err(|error| unreadable(path, &error, place))?;
        if !self.read.iter().any(|(known, _)| known == path) {
            self.read.push((path.to_owned(), text.clone()));
        }
        Ok(text)
    }

    fn file(&mut self, path: &Path, text: &str) -> Vec<Node> {
        let name: Arc<str> = path.to_string_lossy().into();
        let mut lexer = Lexer::new(text, Source::File);
        self.nodes(&mut lexer, &name, false).nodes
    }

    /// The statements up to the end of the block, or of the file outside of one.
    fn nodes(&mut self, lexer: &mut Lexer<'_>, file: &Arc<str>, in_block: bool) -> Block {
        let mut block = Block::default();
        loop {
            let item = lexer.next_item();
            let place = Place::File { path: file.clone(), line: lexer.line() };
            let error = match item {
                Ok(Item::Statement { words, .. })
                    if words.iter().any(|word| word.contains(NO_TEXT)) =>
                {
                    "not valid UTF-8".to_owned()
                }
                Ok(Item::Statement { words, terminator }) => {
                    self.statement(words, terminator, place, lexer, file, &mut block.nodes);
                    if failed(&block.nodes) {
                        return block;
                    }
                    continue;
                }
                Ok(Item::BlockEnd) if in_block => {
                    block.end = Some(place);
                    return block;
                }
                Ok(Item::End) if !in_block => return block,
                Ok(Item::BlockEnd) => "unexpected \"}\"".to_owned(),
                Ok(Item::End) => "unexpected end of file, expecting \"}\"".to_owned(),
                Err(error) => error.to_string(),
            };
            block.nodes.push(Node::Failure(Fault::new(error).located(&place)));
            return block;
        }
    }

    #[expect(
        clippy::arithmetic_side_effects,
        reason = "depth <= DEPTH_MAX, and down again as often as up"
    )]
    fn statement(
        &mut self,
        words: Vec<String>,
        terminator: Terminator,
        place: Place,
        lexer: &mut Lexer<'_>,
        file: &Arc<str>,
        nodes: &mut Vec<Node>,
    ) {
        match terminator {
            Terminator::Semicolon => self.simple(words, place, nodes),
            Terminator::BlockStart if self.depth == DEPTH_MAX => {
                nodes.push(Node::Failure(Fault::new("too many nested blocks").located(&place)));
            }
            Terminator::BlockStart => {
                self.depth += 1;
                let block = Some(self.nodes(lexer, file, true));
                self.depth -= 1;
                nodes.push(Node::Statement(Statement { words, place, block }));
            }
        }
    }

    /// A directive without a block.
    fn simple(&mut self, words: Vec<String>, place: Place, nodes: &mut Vec<Node>) {
        match words.as_slice() {
            // Any other form of include is left to the checks that all directives go through.
            [name, pattern] if name == "include" => self.include(pattern, &place, nodes),
            _ => nodes.push(Node::Statement(Statement { words, place, block: None })),
        }
    }

    #[expect(
        clippy::arithmetic_side_effects,
        reason = "includes <= INCLUDE_DEPTH_MAX, and down again as often as up"
    )]
    fn include(&mut self, pattern: &str, place: &Place, nodes: &mut Vec<Node>) {
        let path = self.directory.join(pattern);
        let is_glob = path.to_string_lossy().contains(['*', '?', '[']);
        let paths = if is_glob { self.files.matching(&path) } else { vec![path] };
        for path in paths {
            let text = if self.includes == INCLUDE_DEPTH_MAX {
                Err(unreadable(&path, &io::Error::from_raw_os_error(libc::EMFILE), Some(place)))
            } else {
                self.text_of(&path, Some(place))
            };
            match text {
                Ok(text) => {
                    self.includes += 1;
                    nodes.extend(self.file(&path, &text));
                    self.includes -= 1;
                }
                Err(failed) => nodes.push(Node::Failure(failed)),
            }
            if failed(nodes) {
                return;
            }
        }
    }
}

/// Whether reading stopped within these nodes.
fn failed(nodes: &[Node]) -> bool {
    match nodes.last() {
        Some(Node::Failure(_)) => true,
        Some(Node::Statement(Statement { block: Some(block), .. })) => block.end.is_none(),
        Some(Node::Statement(_)) | None => false,
    }
}

/// `open() "P" failed (2: No such file or directory)`
fn unreadable(path: &Path, error: &io::Error, place: Option<&Place>) -> Diagnostic {
    let path = path.display();
    let (call, level, place) = match error.raw_os_error() {
        // A directory can be opened; what fails is reading it, of which nginx says so.
        Some(libc::EISDIR) => ("pread()", Level::Crit, None),
        _ => ("open()", Level::Emerg, place.cloned()),
    };
    let text = format!("{call} \"{path}\" failed ({})", errno(error));
    Diagnostic { level, text, place }
}

/// `2: No such file or directory`, as nginx shows system errors.
pub fn errno(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    match error.raw_os_error() {
        Some(number) => format!("{number}: {text}"),
        None => text.to_owned(),
    }
}

/// The real file system.
#[derive(Debug, Clone, Copy)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
    }

    /// As glob(3): `*` stands for no dot at the start and for no slash, `**` is no more than `*`, and
    /// the order is that of the bytes.
    fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        let mut pattern = pattern.to_string_lossy().into_owned();
        while pattern.contains("**") {
            pattern = pattern.replace("**", "*");
        }
        let options =
            glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
        let mut paths: Vec<PathBuf> = glob::glob_with(&pattern, options)
            .map(|paths| paths.filter_map(Result::ok).collect())
            .unwrap_or_default();
        paths.sort_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
        paths
    }
}

/// Files in memory, for tests here and in the modules.
#[cfg(test)]
pub mod memory {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default)]
    pub struct Memory(pub BTreeMap<PathBuf, String>);

    impl Memory {
        pub fn of(files: &[(&str, &str)]) -> Self {
            Memory(files.iter().map(|(path, text)| (path.into(), (*text).to_owned())).collect())
        }
    }

    impl Files for Memory {
        fn read(&self, path: &Path) -> io::Result<String> {
            self.0.get(path).cloned().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
        }

        fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
            let Ok(pattern) = glob::Pattern::new(&pattern.to_string_lossy()) else {
                return Vec::new();
            };
            self.0.keys().filter(|path| pattern.matches_path(path)).cloned().collect()
        }
    }
}

/// Any bytes, including themselves: reading ends, and only the last node is a failure.
#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
pub fn fuzz_tree(data: &[u8]) {
    struct Same(String);
    impl Files for Same {
        fn read(&self, _: &Path) -> io::Result<String> {
            Ok(self.0.clone())
        }
        fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
            vec![pattern.to_owned()]
        }
    }
    fn check(nodes: &[Node]) {
        for (at, node) in nodes.iter().enumerate() {
            match node {
                Node::Statement(statement) => {
                    assert!(!statement.words.is_empty());
                    if let Some(block) = &statement.block {
                        check(&block.nodes);
                    }
                }
                Node::Failure(_) => assert_eq!(at + 1, nodes.len()),
            }
        }
    }
    let text = String::from_utf8_lossy(data).into_owned();
    check(&Tree::parameter(&text).nodes);
    // Text that includes itself twice would be read two to the hundredth time.
    if text.matches("include").count() < 2 {
        check(&Tree::read(Path::new("/c/x.conf"), &Same(text)).nodes);
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::memory::Memory;
    use super::*;

    /// The tree on one line, and where it failed.
    fn shown(nodes: &[Node]) -> String {
        let mut text = String::new();
        for node in nodes {
            match node {
                Node::Statement(Statement { words, block, .. }) => {
                    text += &words.join(" ");
                    match block {
                        Some(block) => _ = write!(text, "{{{}}}", shown(&block.nodes)),
                        None => text.push(';'),
                    }
                }
                Node::Failure(diagnostic) => _ = write!(text, "!{diagnostic}"),
            }
        }
        text
    }

    fn read(files: &[(&str, &str)]) -> String {
        shown(&Tree::read(Path::new("/c/x.conf"), &Memory::of(files)).nodes)
    }

    #[test]
    fn blocks_and_includes() {
        let files = [
            ("/c/x.conf", "a { include b.conf; include d/*.conf; include none*; } c;"),
            ("/c/b.conf", "b 1;"),
            ("/c/d/2.conf", "d 2;"),
            ("/c/d/1.conf", "d 1 { }"),
        ];
        assert_eq!(read(&files), "a{b 1;d 1{}d 2;}c;");
        let tree = Tree::read(Path::new("/c/x.conf"), &Memory::of(&files));
        let names: Vec<_> = tree.files.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        assert_eq!(names, ["/c/x.conf", "/c/b.conf", "/c/d/1.conf", "/c/d/2.conf"]);
    }

    #[test]
    fn the_failure_stands_where_it_was_met() {
        assert_eq!(read(&[("/c/x.conf", "a;\n}")]), "a;![emerg] unexpected \"}\" in /c/x.conf:2");
        assert_eq!(
            read(&[("/c/x.conf", "a {\n b;\n")]),
            "a{b;![emerg] unexpected end of file, expecting \"}\" in /c/x.conf:3}"
        );
        assert_eq!(
            read(&[("/c/x.conf", "a {\n include b; c;\n}\n")]),
            "a{![emerg] open() \"/c/b\" failed (2: No such file or directory) in /c/x.conf:2}"
        );
        assert_eq!(
            read(&[("/c/x.conf", "include /y; c;"), ("/y", "a {")]),
            "a{![emerg] unexpected end of file, expecting \"}\" in /y:1}"
        );
        assert_eq!(
            read(&[]),
            "![emerg] open() \"/c/x.conf\" failed (2: No such file or directory)"
        );
        let own = read(&[("/c/x.conf", "include x.conf;")]);
        assert_eq!(
            own,
            "![emerg] open() \"/c/x.conf\" failed (24: Too many open files) in /c/x.conf:1"
        );
    }

    #[test]
    fn the_command_line() {
        assert_eq!(shown(&Tree::parameter("a b; c;").nodes), "a b;c;");
        assert_eq!(
            shown(&Tree::parameter("a b").nodes),
            "![emerg] unexpected end of parameter, expecting \";\" in command line"
        );
        assert_eq!(
            shown(&Tree::parameter("a { }").nodes),
            "![emerg] block directives are not supported in -g option in command line"
        );
    }

    proptest! {
        #[test]
        fn any_text(text in "[a{};\"' \n]{0,60}|(include [ax.*]{1,5};){0,1}|(a \\{){0,150}") {
            fuzz_tree(text.as_bytes());
        }
    }
}
