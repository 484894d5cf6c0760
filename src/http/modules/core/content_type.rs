//! The type of a local response, by the extension of its URI.

use std::sync::Arc;

use super::{Settings, Types};

/// `types`, else `default_type`; `None` when that is empty.
pub fn content_type(core: &Settings, uri: &[u8]) -> Option<Arc<str>> {
    let segment = uri.rsplit(|&b| b == b'/').next().unwrap_or_default();
    let extension = memchr::memrchr(b'.', segment).and_then(|at| segment.get(at..)?.get(1..));
    let types: &Types = &core.types;
    let known = extension.filter(|e| !e.is_empty()).and_then(|extension| {
        if extension.iter().any(u8::is_ascii_uppercase) {
            types.get(extension.to_ascii_lowercase().as_slice())
        } else {
            types.get(extension)
        }
    });
    let found = known.unwrap_or(&core.default_type);
    (!found.is_empty()).then(|| Arc::clone(found))
}
