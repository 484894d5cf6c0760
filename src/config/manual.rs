//! The manual of all directives, made from their rows: `conf/directives.md`.

use std::fmt::Write;

use super::directive::{Directive, Module, Support};

/// Renders the manual as Markdown.
pub fn render<S>(modules: &[Module<S>]) -> String {
    let mut text = String::from(INTRODUCTION);
    for module in modules {
        let (have, rest): (Vec<_>, Vec<_>) = module
            .rows()
            .partition(|row| matches!(row.support, Support::Full | Support::Differs(_)));
        _ = write!(text, "\n## {}\n", module.name);
        for row in have {
            entry(&mut text, row);
        }
        list(&mut text, "Accepted without effect", &rest, |support| match support {
            Support::NoEffect(why) => Some((why, None)),
            _ => None,
        });
        list(&mut text, "Refused", &rest, |support| match support {
            Support::Refused { why, unless } => Some((why, unless.map(|word| word.text))),
            _ => None,
        });
    }
    text
}

const INTRODUCTION: &str = "\
# Directives

Made from the directive tables; do not edit. The words, the syntax and the defaults are nginx's;
where ringx differs, it is said.
";

fn entry<S>(text: &mut String, row: &Directive<S>) {
    _ = write!(text, "\n### {}\n\n", row.name);
    let tail = if row.is_block() { " { … }" } else { ";" };
    let space = if row.syntax.is_empty() { "" } else { " " };
    _ = writeln!(text, "- syntax: `{}{space}{}{tail}`", row.name, row.syntax);
    if let Some(default) = row.default {
        _ = writeln!(text, "- default: `{} {default};`", row.name);
    }
    let contexts: Vec<_> = row.contexts.names().collect();
    _ = writeln!(text, "- context: {}", contexts.join(", "));
    _ = write!(text, "\n{}\n", row.doc);
    if let Support::Differs(how) = row.support {
        _ = write!(text, "\nUnlike nginx: {how}\n");
    }
}

/// Why, and the argument that is taken all the same.
type Reason = (&'static str, Option<&'static str>);

fn list<S>(
    text: &mut String,
    title: &str,
    rows: &[&Directive<S>],
    pick: fn(Support) -> Option<Reason>,
) {
    let mut is_first = true;
    for row in rows {
        let Some((why, unless)) = pick(row.support) else { continue };
        if is_first {
            _ = write!(text, "\n{title}:\n\n");
            is_first = false;
        }
        _ = write!(text, "- `{}`: {why}", row.name);
        if let Some(word) = unless {
            _ = write!(text, " (`{word}` is taken)");
        }
        text.push('\n');
    }
}
