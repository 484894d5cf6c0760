//! The variables that a configuration makes and uses: names to slots, and strings to templates.

use super::{
    Captures, Part, Regex, Template, Variable, VariableSlot, fixed, is_not_supported, of_family,
};
use crate::config::diagnostic::{Fault, Outcome, fault};

/// The variables a configuration makes and uses: names to slots, and strings to templates.
///
/// A name may be used before the `set` or the group that makes it, so a use of an unknown name takes
/// a slot; whether all of them were made is asked at the end ([`Names::check`]).
#[derive(Debug, Default)]
pub struct Names {
    slots: Vec<SlotName>,
    /// Members of families that a `set` anywhere gives a value, lower case.
    overridden: Vec<Box<str>>,
}

#[derive(Debug)]
struct SlotName {
    name: Box<str>,
    is_made: bool,
    /// It was `set` that made it: without a value it is empty, and there.
    is_set: bool,
}

/// What `set` may write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settable {
    Slot(VariableSlot),
    Args,
    LimitRate,
}

impl Names {
    /// Compiles a string with variables.
    pub fn template(&mut self, text: &str) -> Outcome<Template> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('$') {
            push_literal(&mut parts, literal);
            let mut chars = after.chars();
            if let Some(digit @ 1..=9) = chars.next().and_then(|first| first.to_digit(10)) {
                parts.push(Part::Variable(Variable::Capture(digit as u8)));
                rest = chars.as_str();
                continue;
            }
            let (in_brackets, after) = match after.strip_prefix('{') {
                Some("") => return fault!("invalid variable name"),
                Some(after) => (true, after),
                None => (false, after),
            };
            let length = after.bytes().take_while(|b| is_name_byte(*b)).count();
            let (name, tail) = after.split_at(length);
            let behind = if in_brackets { tail.strip_prefix('}') } else { Some(tail) };
            let Some(behind) = behind else {
                return fault!("the closing bracket in \"{name}\" variable is missing");
            };
            if name.is_empty() {
                return fault!("invalid variable name");
            }
            parts.push(Part::Variable(self.variable(name)?));
            rest = behind;
        }
        push_literal(&mut parts, rest);
        Ok(Template { parts })
    }

    /// The variable of this name, known already or to be made somewhere.
    pub fn variable(&mut self, name: &str) -> Outcome<Variable> {
        let name = name.to_ascii_lowercase();
        if let Some(variable) = fixed(&name) {
            return Ok(variable.clone());
        }
        if let Some(variable) = of_family(&name) {
            if self.overridden.iter().any(|overridden| **overridden == *name) {
                let slot = self.slot(&name)?;
                return Ok(Variable::Overridden(Box::new((slot, variable))));
            }
            return Ok(variable);
        }
        if is_not_supported(&name) {
            return fault!("the \"{name}\" variable is not supported");
        }
        self.slot(&name).map(Variable::Slot)
    }

    /// Notes that there is a `set` for this name, ahead of all uses of it.
    pub fn note_set(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        if of_family(&name).is_some() {
            self.overridden.push(name.into());
        }
    }

    /// Compiles a regex and binds its named groups.
    pub fn regex(&mut self, pattern: &str, caseless: bool) -> Outcome<Regex> {
        let mut regex = Regex::compile(pattern, caseless)?;
        let named: Vec<(usize, String)> = regex
            .compiled
            .capture_names()
            .enumerate()
            .filter_map(|(group, name)| Some((group, name?.to_owned())))
            .collect();
        for (group, name) in named {
            match self.make(&name)? {
                Settable::Slot(slot) => {
                    // Also what `set` has made is not there any more until there is a match.
                    if let Some(made) = self.slots.get_mut(usize::from(slot.0)) {
                        made.is_set = false;
                    }
                    regex.named.push((group, slot));
                }
                Settable::Args | Settable::LimitRate => {
                    return fault!("a group cannot set the \"{name}\" variable");
                }
            }
        }
        Ok(regex)
    }

    /// The variable that a `set $name` or a named group writes to.
    pub fn make(&mut self, name: &str) -> Outcome<Settable> {
        let name = name.to_ascii_lowercase();
        match fixed(&name) {
            Some(Variable::Args) if name == "args" => return Ok(Settable::Args),
            Some(Variable::LimitRate) => return Ok(Settable::LimitRate),
            Some(_) => return fault!("the duplicate \"{name}\" variable"),
            None => {}
        }
        if is_not_supported(&name) {
            return fault!("setting the \"{name}\" variable is not supported");
        }
        let slot = self.slot(&name)?;
        if let Some(made) = self.slots.get_mut(usize::from(slot.0)) {
            made.is_made = true;
        }
        Ok(Settable::Slot(slot))
    }

    /// [`Names::make`] for `set`: what nothing else has made yet has a value from the start.
    pub fn set_variable(&mut self, name: &str) -> Outcome<Settable> {
        let known = |slot: &SlotName| slot.is_made && slot.name.eq_ignore_ascii_case(name);
        let is_new = !self.slots.iter().any(known);
        let variable = self.make(name)?;
        if let Settable::Slot(slot) = variable
            && let Some(made) = self.slots.get_mut(usize::from(slot.0))
        {
            made.is_set |= is_new;
        }
        Ok(variable)
    }

    /// Which of the slots `set` has made.
    pub fn set_slots(&self) -> Vec<bool> {
        self.slots.iter().map(|slot| slot.is_set).collect()
    }

    /// The variable that a `map`, `geo` or `split_clients` block computes; `text` is `$name`.
    pub fn make_computed(&mut self, text: &str) -> Outcome<VariableSlot> {
        match text.strip_prefix('$') {
            Some(name) if !name.is_empty() => match self.make(name)? {
                Settable::Slot(slot) => Ok(slot),
                Settable::Args | Settable::LimitRate => {
                    fault!("computing the \"{name}\" variable is not supported")
                }
            },
            _ => fault!("invalid variable name \"{text}\""),
        }
    }

    fn slot(&mut self, name: &str) -> Outcome<VariableSlot> {
        let known = self.slots.iter().position(|slot| *slot.name == *name);
        let at = known.unwrap_or(self.slots.len());
        let Ok(slot) = u16::try_from(at) else { return fault!("too many variables") };
        if known.is_none() {
            self.slots.push(SlotName { name: name.into(), is_made: false, is_set: false });
        }
        Ok(VariableSlot(slot))
    }

    /// Fails when a name is used that nothing makes.
    pub fn check(&self) -> Outcome {
        match self.slots.iter().find(|slot| !slot.is_made) {
            Some(slot) => Err(Fault::nowhere(format!("unknown \"{}\" variable", slot.name))),
            None => Ok(()),
        }
    }

    /// The names in the order of their slots.
    pub fn into_names(self) -> Vec<Box<str>> {
        self.slots.into_iter().map(|slot| slot.name).collect()
    }
}
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn push_literal(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Literal(text.as_bytes().into()));
    }
}
/// Any text: a template holds its literal bytes in order, and a regex search stays in its subject.
#[expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "the property that is tested"
)]
pub fn fuzz_template(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut names = Names::default();
    if let Ok(template) = names.template(&text) {
        let mut rest: &[u8] = text.as_bytes();
        for part in &template.parts {
            if let Part::Literal(literal) = part {
                assert!(!literal.is_empty());
                let at = memchr::memmem::find(rest, literal).expect("literals are of the text");
                rest = &rest[at + literal.len()..];
            }
        }
    }
    let (pattern, subject) = data.split_at(data.len() / 2);
    if let Ok(regex) = Regex::compile(&String::from_utf8_lossy(pattern), true) {
        let mut captures = Captures::default();
        if regex.matches(subject, &mut captures) == Ok(true) {
            assert_eq!(captures.subject, subject);
            for n in 0..captures.groups.len() {
                assert_eq!(captures.group(n).is_some(), captures.groups[n].is_some());
            }
        }
    }
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::HeaderName;
    use super::*;

    fn text_of(error: Fault) -> String {
        error.text
    }

    #[test]
    fn templates() {
        let mut names = Names::default();
        let template = names.template("a$URI${args}b$1$21$http_x_y$own.$own").unwrap();
        assert_eq!(
            template.parts,
            [
                Part::Literal(b"a".as_slice().into()),
                Part::Variable(Variable::Uri),
                Part::Variable(Variable::Args),
                Part::Literal(b"b".as_slice().into()),
                Part::Variable(Variable::Capture(1)),
                Part::Variable(Variable::Capture(2)),
                Part::Literal(b"1".as_slice().into()),
                Part::Variable(Variable::Http(HeaderName(b"x_y".as_slice().into()))),
                Part::Variable(Variable::Slot(VariableSlot(0))),
                Part::Literal(b".".as_slice().into()),
                Part::Variable(Variable::Slot(VariableSlot(0))),
            ]
        );
        assert_eq!(names.check().map_err(text_of), Err("unknown \"own\" variable".into()));
        assert_eq!(names.make("OWN"), Ok(Settable::Slot(VariableSlot(0))));
        assert_eq!(names.check(), Ok(()));
        assert_eq!(names.make("args"), Ok(Settable::Args));
        assert_eq!(
            names.make("uri").map_err(text_of),
            Err("the duplicate \"uri\" variable".into())
        );
        assert_eq!(&*names.into_names()[0], "own");
    }

    #[test]
    fn broken_templates() {
        let mut names = Names::default();
        for (text, error) in [
            ("$", "invalid variable name"),
            ("a$-", "invalid variable name"),
            ("${}", "invalid variable name"),
            ("a${", "invalid variable name"),
            ("${a", "the closing bracket in \"a\" variable is missing"),
            ("${a-b}", "the closing bracket in \"a\" variable is missing"),
            ("$ssl_protocol", "the \"ssl_protocol\" variable is not supported"),
        ] {
            assert_eq!(names.template(text).map_err(text_of), Err(error.into()), "{text}");
        }
    }

    #[test]
    fn named_groups_have_slots() {
        let mut names = Names::default();
        let regex = names.regex("^/(?<a>x)(y)?(?P<b>z)", false).unwrap();
        assert_eq!(regex.named, [(1, VariableSlot(0)), (3, VariableSlot(1))]);
        let mut captures = Captures::default();
        assert_eq!(regex.matches(b"/xz", &mut captures), Ok(true));
        assert_eq!(captures.group(1), Some(b"x".as_slice()));
        assert_eq!(captures.group(2), None);
        assert_eq!(captures.group(3), Some(b"z".as_slice()));
        assert_eq!(captures.group(4), None);
    }

    #[test]
    fn a_group_is_not_there_without_a_match_whatever_set_says() {
        let mut names = Names::default();
        names.set_variable("a").unwrap();
        names.set_variable("b").unwrap();
        names.regex("(?<b>x)(?<c>y)", false).unwrap();
        names.set_variable("c").unwrap();
        assert_eq!(names.set_slots(), [true, false, false]);
    }

    proptest! {
        #[test]
        fn any_template(text in "[a${}1-3_ é]{0,20}") {
            fuzz_template(text.as_bytes());
        }

        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..40)) {
            fuzz_template(&data);
        }
    }
}
