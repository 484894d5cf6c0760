//! The checks that every statement goes through before its own: is the name known, may it stand
//! here, does it end as it should, has it the right number of arguments. In this order, as nginx.

use super::diagnostic::{Outcome, fault};
use super::directive::{Action, Contexts, Directive, Module, Support};
use super::tree::Statement;

/// The row for a statement that stands in `context`.
pub fn check<S>(
    modules: &[Module<S>],
    statement: &Statement,
    context: Contexts,
) -> Outcome<&'static Directive<S>> {
    let name = statement.name();
    let mut rows = modules.iter().flat_map(Module::rows).filter(|row| row.name == name);
    let Some(first) = rows.clone().next() else {
        return fault!("unknown directive \"{name}\"");
    };
    if let Support::Refused { why, unless: None } = first.support {
        return fault!("\"{name}\" directive is not supported: {why}");
    }
    let Some(row) = rows.find(|row| row.contexts.meets(context)) else {
        return fault!("\"{name}\" directive is not allowed here");
    };
    match (row.is_block(), statement.block.is_some()) {
        (true, false) => return fault!("directive \"{name}\" has no opening \"{{\""),
        (false, true) => return fault!("directive \"{name}\" is not terminated by \";\""),
        (true, true) | (false, false) => {}
    }
    if !row.count.allows(statement.words.len().saturating_sub(1)) {
        return fault!("invalid number of arguments in \"{name}\" directive");
    }
    if let Support::Refused { why, unless: Some(word) } = row.support {
        let arguments = statement.words.get(1..).unwrap_or_default();
        if !matches!(arguments, [only] if word.is(only)) {
            return fault!("\"{name}\" directive is not supported: {why}");
        }
    }
    debug_assert!(
        !matches!(row.action, Action::Pass) || row.support != Support::Full,
        "{name}: a row that does nothing says so"
    );
    Ok(row)
}
