//! Which browser a `User-Agent` header names, as far as nginx treats some of them differently.

use memchr::memmem;

/// Told by the words that nginx looks for; every browser copies words of the others, so the order
/// in which they are looked for is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Browser {
    Msie {
        /// MSIE 4 or 5, or 6 before Windows XP's second service pack.
        old: bool,
    },
    Opera,
    Gecko,
    Chrome,
    /// On macOS or iOS.
    Safari,
    Other,
}

impl Browser {
    pub fn of(user_agent: &[u8]) -> Browser {
        let has = |word: &str| memmem::find(user_agent, word.as_bytes()).is_some();
        if has("Opera") {
            return Browser::Opera;
        }
        if let Some(old) = msie(user_agent) {
            return Browser::Msie { old };
        }
        if has("Gecko/") {
            Browser::Gecko
        } else if has("Chrome/") {
            Browser::Chrome
        } else if has("Safari/") && has("Mac OS X") {
            Browser::Safari
        } else {
            Browser::Other
        }
    }
}

/// `MSIE 6.0;`: whether it is an old one.
fn msie(user_agent: &[u8]) -> Option<bool> {
    let at = memmem::find(user_agent, b"MSIE ")?;
    let version = user_agent.get(at..)?.strip_prefix(b"MSIE ")?;
    let [major, dot, _, rest @ ..] = version else { return None };
    Some(match (major, dot) {
        (b'4' | b'5', b'.') => true,
        (b'6', b'.') => memmem::find(rest, b"SV1").is_none(),
        _ => false,
    })
}

/// Any bytes: what is told holds the word it is told by.
pub fn fuzz_user_agent(data: &[u8]) {
    let word = match Browser::of(data) {
        Browser::Msie { .. } => "MSIE ",
        Browser::Opera => "Opera",
        Browser::Gecko => "Gecko/",
        Browser::Chrome => "Chrome/",
        Browser::Safari => "Safari/",
        Browser::Other => "",
    };
    assert!(memmem::find(data, word.as_bytes()).is_some());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn browsers() {
        for (text, browser) in [
            ("Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1)", Browser::Msie { old: true }),
            ("Mozilla/4.0 (compatible; MSIE 5.5; Windows 98)", Browser::Msie { old: true }),
            ("Mozilla/4.0 (compatible; MSIE 6.0; Windows NT; SV1)", Browser::Msie { old: false }),
            ("Mozilla/4.0 (compatible; MSIE 7.0)", Browser::Msie { old: false }),
            ("MSIE 10.0", Browser::Msie { old: false }),
            ("MSIE 6", Browser::Other),
            ("Mozilla/4.0 (compatible; MSIE 6.0) Opera 7.5", Browser::Opera),
            ("Mozilla/5.0 (X11; rv:1) Gecko/2009 Firefox/3", Browser::Gecko),
            ("Mozilla/5.0 (Mac OS X) (KHTML, like Gecko) Chrome/9 Safari/5", Browser::Chrome),
            ("Mozilla/5.0 (Macintosh; Mac OS X) Version/5 Safari/533", Browser::Safari),
            ("Mozilla/5.0 (Windows) Version/5 Safari/533", Browser::Other),
            ("curl/8", Browser::Other),
        ] {
            assert_eq!(Browser::of(text.as_bytes()), browser, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text(text in "(MSIE |[456]|\\.|SV1|Opera|Gecko/|Chrome/|Safari/|Mac OS X| ){0,8}") {
            fuzz_user_agent(text.as_bytes());
        }
    }
}
