//! `proxy_cookie_domain`, `proxy_cookie_path`, `proxy_cookie_flags`: a `Set-Cookie` taken apart,
//! changed and put together again (RFC 6265 section 5.2, read as nginx reads it).

use std::borrow::Cow;
use std::sync::Arc;

use super::Settings;
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http::value;
use crate::http::variable::{GaveUp, Regex, Template};

/// `proxy_cookie_flags name|~regex flag …;`
#[derive(Debug, Clone)]
pub struct FlagsRule {
    pub name: Name,
    pub flags: Vec<Template>,
}

#[derive(Debug, Clone)]
pub enum Name {
    /// In any case.
    Is(Template),
    Regex(Arc<Regex>),
}

/// The cookie as the client gets it; `None`: as it came.
pub fn rewritten(
    c: &Connection,
    r: &mut Request,
    settings: &Settings,
    cookie: &[u8],
) -> Option<Vec<u8>> {
    let mut cookie = Cookie::parse(cookie)?;
    let mut is_changed = false;
    for attribute in cookie.attributes.iter_mut().skip(1) {
        let Some(value) = &attribute.value else { continue };
        let rules = match attribute.name.as_ref() {
            name if name.eq_ignore_ascii_case(b"domain") => &settings.cookie_domain,
            name if name.eq_ignore_ascii_case(b"path") => &settings.cookie_path,
            _ => continue,
        };
        if let Some(new) = rules.apply(c, r, value) {
            attribute.value = Some(new.into());
            is_changed = true;
        }
    }
    let name = cookie.attributes.first().map(|first| first.name.clone()).unwrap_or_default();
    let rule = settings.cookie_flags.iter().find(|rule| rule.is_for(c, r, &name));
    if let Some(rule) = rule {
        let flags = rule.flags.iter().map(|flag| value::expanded(flag, c, r));
        let flags = Flags::of(flags);
        if flags != Flags::default() {
            cookie.set_flags(&flags);
            is_changed = true;
        }
    }
    is_changed.then(|| cookie.text())
}

impl FlagsRule {
    fn is_for(&self, c: &Connection, r: &mut Request, cookie: &[u8]) -> bool {
        match &self.name {
            Name::Is(name) => value::expanded(name, c, r).eq_ignore_ascii_case(cookie),
            Name::Regex(regex) => {
                let matches = regex.matches(cookie, r.captures.get_mut());
                match matches {
                    Ok(true) => r.set_named_captures(regex),
                    Ok(false) => {}
                    Err(GaveUp) => r.give_up(c, regex),
                }
                matches == Ok(true)
            }
        }
    }
}

/// Name and value, then the attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cookie<'a> {
    attributes: Vec<Attribute<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Attribute<'a> {
    name: Cow<'a, [u8]>,
    /// What is behind `=`.
    value: Option<Cow<'a, [u8]>>,
}

impl<'a> Cookie<'a> {
    /// None without a `=` in the first part.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let attributes: Vec<_> = text.split(|&byte| byte == b';').map(Attribute::parse).collect();
        attributes.first()?.value.as_ref()?;
        Some(Cookie { attributes })
    }

    /// Sets and removes attributes; new ones come last.
    fn set_flags(&mut self, flags: &Flags) {
        let Flags { mut secure, mut http_only, mut same_site } = *flags;
        let mut is_first = true;
        self.attributes.retain_mut(|attribute| {
            if std::mem::take(&mut is_first) {
                return true;
            }
            let name = attribute.name.as_ref();
            let flag = if name.eq_ignore_ascii_case(b"secure") {
                &mut secure
            } else if name.eq_ignore_ascii_case(b"httponly") {
                &mut http_only
            } else if name.eq_ignore_ascii_case(b"samesite") {
                let written = attribute.value.as_deref().unwrap_or_default();
                // One that says so already stays as it is written.
                if let Some(value) = same_site.on.filter(|on| !on.eq_ignore_ascii_case(written)) {
                    attribute.name = b"SameSite".into();
                    attribute.value = Some(value.into());
                }
                &mut same_site
            } else {
                return true;
            };
            // It is there already: nothing to add.
            flag.on.take().is_some() || !flag.off
        });
        for (name, flag) in [("Secure", secure), ("HttpOnly", http_only), ("SameSite", same_site)] {
            if let Some(value) = flag.on {
                let value = (!value.is_empty()).then(|| value.into());
                self.attributes.push(Attribute { name: name.as_bytes().into(), value });
            }
        }
    }

    fn text(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (n, Attribute { name, value }) in self.attributes.iter().enumerate() {
            if n > 0 {
                out.extend_from_slice(b"; ");
            }
            out.extend_from_slice(name);
            if let Some(value) = value {
                out.push(b'=');
                out.extend_from_slice(value);
            }
        }
        out
    }
}

impl<'a> Attribute<'a> {
    fn parse(text: &'a [u8]) -> Self {
        let at = memchr::memchr(b'=', text).unwrap_or(text.len());
        let (name, value) = text.split_at(at);
        let value = value.get(1..);
        Attribute { name: trim_spaces(name).into(), value: value.map(|v| trim_spaces(v).into()) }
    }
}

/// Spaces alone, as nginx.
fn trim_spaces(mut text: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = text {
        text = rest;
    }
    text
}

/// What a cookie is to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Flags {
    secure: Flag,
    http_only: Flag,
    same_site: Flag,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Flag {
    /// To be there, with this value; empty: none.
    on: Option<&'static [u8]>,
    /// To be taken out, where it is not to be there.
    off: bool,
}

impl Flags {
    /// Unknown words are passed over.
    fn of(words: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut flags = Flags::default();
        for word in words {
            match word.to_ascii_lowercase().as_slice() {
                b"secure" => flags.secure.on = Some(b""),
                b"nosecure" => flags.secure.off = true,
                b"httponly" => flags.http_only.on = Some(b""),
                b"nohttponly" => flags.http_only.off = true,
                b"samesite=strict" => flags.same_site.on = Some(b"Strict"),
                b"samesite=lax" => flags.same_site.on = Some(b"Lax"),
                b"samesite=none" => flags.same_site.on = Some(b"None"),
                b"nosamesite" => flags.same_site.off = true,
                _ => {}
            }
        }
        flags
    }
}

/// A cookie taken apart and put together reads the same again, and no line end gets in.
#[allow(clippy::expect_used, reason = "the property that is tested")]
pub fn fuzz_cookie(data: &[u8]) {
    let line: Vec<u8> = data.iter().copied().filter(|byte| !b"\r\n\0".contains(byte)).collect();
    let Some(mut cookie) = Cookie::parse(&line) else { return };
    let text = cookie.text();
    assert_eq!(Cookie::parse(&text).as_ref(), Some(&cookie));
    let words = [b"secure".to_vec(), b"samesite=lax".to_vec(), b"nohttponly".to_vec()];
    cookie.set_flags(&Flags::of(words.into_iter()));
    let text = cookie.text();
    assert!(!text.iter().any(|byte| b"\r\n\0".contains(byte)));
    let again = Cookie::parse(&text).expect("still a cookie");
    let has = |name: &[u8]| {
        again.attributes.iter().skip(1).any(|attribute| attribute.name.eq_ignore_ascii_case(name))
    };
    assert!(has(b"secure") && has(b"samesite") && !has(b"httponly"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flagged(cookie: &str, words: &str) -> String {
        let mut cookie = Cookie::parse(cookie.as_bytes()).unwrap();
        cookie.set_flags(&Flags::of(words.split(' ').map(|word| word.as_bytes().to_vec())));
        String::from_utf8(cookie.text()).unwrap()
    }

    #[test]
    fn flags() {
        for (cookie, words, expected) in [
            ("a=1", "secure", "a=1; Secure"),
            ("a=1; Path=/", "httponly secure", "a=1; Path=/; Secure; HttpOnly"),
            ("a=1; secure", "secure", "a=1; secure"),
            ("a=1; secure; SECURE", "nosecure", "a=1"),
            ("a=1;httponly ;x", "nohttponly", "a=1; x"),
            ("a=1; samesite=Lax; x", "samesite=strict", "a=1; SameSite=Strict; x"),
            ("a=1; samesite=LAX; x", "samesite=lax", "a=1; samesite=LAX; x"),
            ("a=1; secure", "nosecure secure", "a=1; secure"),
            ("a=1", "samesite=none nosamesite samesite=lax", "a=1; SameSite=Lax"),
            ("a=1", "samesite=none", "a=1; SameSite=None"),
            ("a=1; SameSite=None", "nosamesite", "a=1"),
            ("secure=1; x", "nosecure", "secure=1; x"),
            ("a = 1 ;  b = 2", "unknown", "a=1; b=2"),
            ("a=1;", "", "a=1; "),
            ("a=b=c; d==", "SECURE", "a=b=c; d==; Secure"),
        ] {
            assert_eq!(flagged(cookie, words), expected, "{cookie} {words}");
        }
    }

    #[test]
    fn what_is_no_cookie() {
        assert_eq!(Cookie::parse(b""), None);
        assert_eq!(Cookie::parse(b"a; b=c"), None);
        assert!(Cookie::parse(b"=").is_some());
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_cookie(&data);
        }

        #[test]
        fn likely_cookies(data in "(a|b|secure|HttpOnly|samesite|=|;| ){0,20}") {
            fuzz_cookie(data.as_bytes());
        }
    }
}
