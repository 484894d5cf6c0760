//! The road of a request.

pub mod location;
pub mod modules;
pub mod server;
pub mod special_response;
pub mod variable;
