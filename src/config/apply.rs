//! Walks the tree through the rows: each statement is checked, then does what its row says.

use super::check::check;
use super::diagnostic::{Diagnostic, Fault, Outcome, Place};
use super::directive::{Action, Contexts, Directive, Module, Support};
use super::tree::{Block, Node, Statement, Tree};
use super::value::Args;
use crate::error_log::Level;

/// What the rows build.
pub trait State {
    /// Takes a warning or a notice.
    fn report(&mut self, diagnostic: Diagnostic);
}

/// Applies nodes that stand in `context`; the first error ends it.
pub fn apply<S: State>(
    modules: &[Module<S>],
    state: &mut S,
    nodes: &[Node],
    context: Contexts,
) -> Result<(), Diagnostic> {
    Walk { modules, noted: Vec::new() }.nodes(state, nodes, context)
}

/// Applies the default of every row that stands in `context`, through the row's own setter.
pub fn apply_defaults<S>(
    modules: &[Module<S>],
    state: &mut S,
    context: Contexts,
) -> Result<(), Diagnostic> {
    for row in modules.iter().flat_map(Module::rows) {
        let Some(default) = row.default.filter(|_| row.contexts.meets(context)) else { continue };
        match row.action {
            Action::Set(set) => {
                let nodes = Tree::parameter(&format!("{} {default};", row.name)).nodes;
                entries(state, &nodes, set)?;
            }
            Action::Table { open, entry, close } => {
                let here = Place::CommandLine;
                let words = vec![row.name.to_owned()];
                let opening = Statement { words, place: here.clone(), block: None };
                open(state, Args::new(&opening)).map_err(|fault| fault.located(&here))?;
                entries(state, &Tree::parameter(default).nodes, entry)?;
                close(state, &here).map_err(|fault| fault.located(&here))?;
            }
            Action::Pass | Action::Block { .. } => {}
        }
    }
    Ok(())
}

struct Walk<'a, S: 'static> {
    modules: &'a [Module<S>],
    /// Directives without effect that were mentioned already.
    noted: Vec<&'static str>,
}

impl<S: State> Walk<'_, S> {
    fn nodes(
        &mut self,
        state: &mut S,
        nodes: &[Node],
        context: Contexts,
    ) -> Result<(), Diagnostic> {
        for (at, node) in nodes.iter().enumerate() {
            match node {
                Node::Statement(statement) => {
                    let before = nodes.get(..at).unwrap_or_default();
                    self.statement(state, statement, before, context)?;
                }
                Node::Failure(diagnostic) => return Err(diagnostic.clone()),
            }
        }
        Ok(())
    }

    fn statement(
        &mut self,
        state: &mut S,
        statement: &Statement,
        before: &[Node],
        context: Contexts,
    ) -> Result<(), Diagnostic> {
        let place = &statement.place;
        let row = check(self.modules, statement, context).map_err(|fault| fault.located(place))?;
        self.note(state, row);
        let args = Args::new(statement);
        if row.is_once_without_effect() && names(before).any(|name| name == row.name) {
            return Err(args.duplicate().located(place));
        }
        match (row.action, &statement.block) {
            (Action::Set(set), _) => set(state, args).map_err(|fault| fault.located(place)),
            (Action::Block { inside, open, close }, Some(block)) => {
                open(state, args).map_err(|fault| fault.located(place))?;
                self.nodes(state, &block.nodes, inside)?;
                let end = end_of(block, place);
                close(state, end).map_err(|fault| fault.located(end))
            }
            (Action::Table { open, entry, close }, Some(block)) => {
                open(state, args).map_err(|fault| fault.located(place))?;
                entries(state, &block.nodes, entry)?;
                let end = end_of(block, place);
                close(state, end).map_err(|fault| fault.located(end))
            }
            // The checks have seen to it that a block directive has its block.
            (Action::Pass | Action::Block { .. } | Action::Table { .. }, _) => Ok(()),
        }
    }

    /// Says once that a directive has no effect.
    fn note(&mut self, state: &mut S, row: &'static Directive<S>) {
        let Support::NoEffect(why) = row.support else { return };
        if self.noted.contains(&row.name) {
            return;
        }
        self.noted.push(row.name);
        state.report(Diagnostic {
            level: Level::Notice,
            text: format!("\"{}\" directive has no effect: {why}", row.name),
            place: None,
        });
    }
}

fn names(nodes: &[Node]) -> impl Iterator<Item = &str> {
    nodes.iter().filter_map(|node| match node {
        Node::Statement(statement) => Some(statement.name()),
        Node::Failure(_) => None,
    })
}

fn entries<S>(
    state: &mut S,
    nodes: &[Node],
    entry: fn(&mut S, Args<'_>) -> Outcome,
) -> Result<(), Diagnostic> {
    for node in nodes {
        match node {
            Node::Statement(Statement { block: Some(_), place, .. }) => {
                return Err(Fault::new("unexpected \"{\"").located(place));
            }
            Node::Statement(statement) => entry(state, Args::new(statement))
                .map_err(|fault| fault.located(&statement.place))?,
            Node::Failure(diagnostic) => return Err(diagnostic.clone()),
        }
    }
    Ok(())
}

fn end_of<'a>(block: &'a Block, opened: &'a Place) -> &'a Place {
    block.end.as_ref().unwrap_or(opened)
}
