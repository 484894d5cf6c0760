//! The type of a local response, by the extension of its URI.

use std::sync::Arc;

use super::{Settings, Types};

/// `types`, else `default_type`; `None` when that is empty.
pub fn content_type(core: &Settings, uri: &[u8]) -> Option<Arc<str>> {
    let types: &Types = &core.types;
    let known = extension(uri).and_then(|extension| {
        if extension.iter().any(u8::is_ascii_uppercase) {
            types.get(extension.to_ascii_lowercase().as_slice())
        } else {
            types.get(extension)
        }
    });
    let found = known.unwrap_or(&core.default_type);
    (!found.is_empty()).then(|| Arc::clone(found))
}

fn extension(uri: &[u8]) -> Option<&[u8]> {
    let name = uri.rsplit(|&byte| byte == b'/').next()?;
    // The dot that a name begins with hides a file, and says nothing of its type.
    let dot = memchr::memrchr(b'.', name).filter(|dot| *dot > 0)?;
    name.get(dot..)?.get(1..).filter(|extension| !extension.is_empty())
}
