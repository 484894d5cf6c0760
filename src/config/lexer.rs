//! Text to statements: nginx's tokens, quotes, escapes and comments (http-core, section 1.1).

/// Longest token nginx takes: it has to fit the buffer the file is read through.
const TOKEN_MAX: usize = 4096;

/// What ends a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminator {
    /// `;`
    Semicolon,
    /// `{`
    BlockStart,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Statement {
        /// The name and its arguments, unescaped; at least one.
        words: Vec<String>,
        terminator: Terminator,
    },
    /// A `}`.
    BlockEnd,
    End,
}

/// Where the text comes from: decides what is said when it ends too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    File,
    /// The argument of `-g`.
    Parameter,
}

/// Why the text is no statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LexError {
    #[error("unexpected \"{0}\"")]
    Unexpected(char),
    #[error("unexpected end of file, expecting \";\" or \"}}\"")]
    EndOfFile,
    #[error("unexpected end of parameter, expecting \";\"")]
    EndOfParameter,
    #[error("too long parameter, probably missing terminating \"{0}\" character")]
    MissingQuote(char),
    #[error("too long parameter \"{0}...\" started")]
    TooLong(String),
}

/// Reads one statement after the other.
#[derive(Debug, Clone)]
pub struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    source: Source,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str, source: Source) -> Self {
        Lexer { text, at: 0, line: 1, source }
    }

    /// The line on which the last item ended, from 1; after an error, the line to report.
    pub fn line(&self) -> u32 {
        self.line
    }

    pub fn next_item(&mut self) -> Result<Item, LexError> {
        let mut words = Vec::new();
        loop {
            let Some(byte) = self.skip_blank() else {
                return if words.is_empty() { Ok(Item::End) } else { Err(self.early_end()) };
            };
            match byte {
                b';' | b'{' if words.is_empty() => {
                    return Err(LexError::Unexpected(char::from(byte)));
                }
                b'}' if !words.is_empty() => return Err(LexError::Unexpected('}')),
                b';' => {
                    self.step();
                    return Ok(Item::Statement { words, terminator: Terminator::Semicolon });
                }
                b'{' => {
                    self.step();
                    return Ok(Item::Statement { words, terminator: Terminator::BlockStart });
                }
                b'}' => {
                    self.step();
                    return Ok(Item::BlockEnd);
                }
                b'"' | b'\'' => words.push(self.quoted(byte)?),
                _ => words.push(self.bare()?),
            }
        }
    }

    /// Skips whitespace and comments; the byte that follows, not yet taken.
    fn skip_blank(&mut self) -> Option<u8> {
        let mut in_comment = false;
        while let Some(byte) = self.peek() {
            match byte {
                b'\n' => in_comment = false,
                b' ' | b'\t' | b'\r' => {}
                _ if in_comment => {}
                b'#' => in_comment = true,
                _ => return Some(byte),
            }
            self.step();
        }
        None
    }

    /// A token between quotes. What follows it must end the token too.
    fn quoted(&mut self, quote: u8) -> Result<String, LexError> {
        let first_line = self.line;
        self.step();
        let start = self.at;
        loop {
            let Some(byte) = self.peek() else { return Err(self.early_end()) };
            if self.at.saturating_sub(start) >= TOKEN_MAX {
                self.line = first_line;
                return Err(LexError::MissingQuote(char::from(quote)));
            }
            match byte {
                b'\\' => self.skip_escaped(),
                _ if byte == quote => break,
                _ => self.step(),
            }
        }
        let word = self.word_since(start);
        self.step();
        match self.peek() {
            // A closing parenthesis may follow, so that `if ($a = "b")` can be written; it begins
            // a token of its own.
            None | Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' | b')') => Ok(word),
            Some(_) => {
                let rest = self.text.get(self.at..).unwrap_or_default();
                Err(LexError::Unexpected(rest.chars().next().unwrap_or_default()))
            }
        }
    }

    /// A token without quotes: up to whitespace, `;` or a `{` that does not follow a `$`.
    fn bare(&mut self) -> Result<String, LexError> {
        let first_line = self.line;
        let start = self.at;
        let mut after_dollar = false;
        loop {
            let Some(byte) = self.peek() else { return Err(self.early_end()) };
            if self.at.saturating_sub(start) >= TOKEN_MAX {
                self.line = first_line;
                let word = self.text.get(start..).unwrap_or_default();
                return Err(LexError::TooLong(word.chars().take(10).collect()));
            }
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b';' => break,
                b'{' if !after_dollar => break,
                b'\\' => {
                    after_dollar = false;
                    self.skip_escaped();
                    continue;
                }
                b'$' => after_dollar = true,
                // `${` may be followed by another `{`, as in nginx.
                b'{' => {}
                _ => after_dollar = false,
            }
            self.step();
        }
        Ok(self.word_since(start))
    }

    /// The token whose text ends here.
    #[expect(clippy::string_slice, reason = "start follows, and at is, a byte of ASCII")]
    fn word_since(&self, start: usize) -> String {
        unescape(&self.text[start..self.at])
    }

    /// A backslash and the byte after it: neither can end a token.
    fn skip_escaped(&mut self) {
        self.step();
        self.step();
    }

    /// Over the next byte, if there is one.
    fn step(&mut self) {
        if let Some(byte) = self.peek() {
            self.line = self.line.saturating_add(u32::from(byte == b'\n'));
            self.at = self.at.saturating_add(1);
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn early_end(&self) -> LexError {
        match self.source {
            Source::File => LexError::EndOfFile,
            Source::Parameter => LexError::EndOfParameter,
        }
    }
}

/// `\"` `\'` `\\` `\t` `\r` `\n` are replaced; any other backslash stays.
fn unescape(raw: &str) -> String {
    let mut word = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            word.push(c);
            continue;
        }
        match chars.clone().next() {
            Some(c @ ('"' | '\'' | '\\')) => word.push(c),
            Some('t') => word.push('\t'),
            Some('r') => word.push('\r'),
            Some('n') => word.push('\n'),
            _ => {
                word.push('\\');
                continue;
            }
        }
        chars.next();
    }
    word
}

/// Any bytes: the lexer ends, its lines grow, and words come only from the text.
#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
pub fn fuzz_lexer(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for source in [Source::File, Source::Parameter] {
        let mut lexer = Lexer::new(&text, source);
        let lines = text.matches('\n').count() as u32 + 1;
        let mut total = 0;
        loop {
            let before = (lexer.at, lexer.line);
            match lexer.next_item() {
                Ok(Item::End) => {
                    assert_eq!(lexer.at, text.len());
                    break;
                }
                Ok(Item::Statement { words, .. }) => {
                    assert!(!words.is_empty());
                    total += words.iter().map(String::len).sum::<usize>();
                }
                Ok(Item::BlockEnd) => {}
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    break;
                }
            }
            assert!(lexer.at > before.0 && lexer.line >= before.1 && lexer.line <= lines);
        }
        assert!(total <= text.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        match Lexer::new(text, Source::File).next_item() {
            Ok(Item::Statement { words, .. }) => words,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn error(text: &str) -> (String, u32) {
        let mut lexer = Lexer::new(text, Source::File);
        loop {
            match lexer.next_item() {
                Ok(Item::End) => panic!("{text}: no error"),
                Ok(_) => {}
                Err(error) => return (error.to_string(), lexer.line()),
            }
        }
    }

    #[test]
    fn tokens() {
        assert_eq!(words("a b\tc\r\n d;"), ["a", "b", "c", "d"]);
        assert_eq!(words("a#b c; # d"), ["a#b", "c"]);
        assert_eq!(words("# x\n a;"), ["a"]);
        assert_eq!(words("a # b ; \n c;"), ["a", "c"]);
        assert_eq!(words(r#"a "b c;{}#" 'd"e' f"g";"#), ["a", "b c;{}#", "d\"e", "f\"g\""]);
        assert_eq!(words("a \"b\nc\";"), ["a", "b\nc"]);
        assert_eq!(words("a \"\";"), ["a", ""]);
        assert_eq!(words("if (\"$a\" = \"b\") {"), ["if", "(\"$a\"", "=", "b", ")"]);
        assert_eq!(words("a ${b}c $d{"), ["a", "${b}c", "$d"]);
    }

    #[test]
    fn escapes() {
        assert_eq!(words(r#"a "\"\'\\\t\r\n";"#), ["a", "\"'\\\t\r\n"]);
        assert_eq!(words(r"a b\ c \; \# \{ \d+;"), ["a", r"b\ c", r"\;", r"\#", r"\{", r"\d+"]);
        assert_eq!(words(r#"\"a b;"#), ["\"a", "b"]);
    }

    #[test]
    fn errors_and_their_lines() {
        let end = "unexpected end of file, expecting \";\" or \"}\"";
        assert_eq!(error("a\n\"b\"c;"), ("unexpected \"c\"".into(), 2));
        assert_eq!(error("\n;"), ("unexpected \";\"".into(), 2));
        assert_eq!(error("{"), ("unexpected \"{\"".into(), 1));
        assert_eq!(error("a }"), ("unexpected \"}\"".into(), 1));
        assert_eq!(error("a\n\n"), (end.into(), 3));
        assert_eq!(error("a \"b;\n"), (end.into(), 2));
        let long = format!("a\n {};", "x".repeat(5000));
        assert_eq!(error(&long), ("too long parameter \"xxxxxxxxxx...\" started".into(), 2));
        let long = format!("a\n \"{};", "x\n".repeat(5000));
        let text = "too long parameter, probably missing terminating \"\"\" character";
        assert_eq!(error(&long), (text.into(), 2));
        let mut lexer = Lexer::new("a b", Source::Parameter);
        assert_eq!(lexer.next_item(), Err(LexError::EndOfParameter));
    }

    proptest! {
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_lexer(&data);
        }

        #[test]
        fn likely_bytes(data in "[a \n\"'{};#$\\\\)é]{0,80}") {
            fuzz_lexer(data.as_bytes());
        }

        #[test]
        fn a_quoted_word_survives(word in "[a-z \"'\\\\;{}#\n]{0,40}") {
            let escaped = word.replace('\\', "\\\\").replace('"', "\\\"");
            prop_assert_eq!(words(&format!("x \"{escaped}\";")), ["x".to_owned(), word]);
        }
    }
}
