//! The road of a request.

pub mod draft;
pub mod location;
pub mod modules;
pub mod server;
pub mod variable;
