//! The road of a request: a connection is accepted, its head read, its location found, and the
//! request answered there, by a file or by an upstream server.

pub mod listener;

pub mod connection;

pub mod phase;

pub mod upstream;

pub mod temp_file;
pub mod tunnel;

pub mod special_response;

pub mod response;

pub mod pace;

pub mod body;
pub mod reading;

pub mod value;

pub mod computed;

pub mod request;

pub mod modules;

pub mod draft;
pub mod fault;
pub mod location;
pub mod server;

pub mod action;
pub mod close;
pub mod count;
pub mod slots;
pub mod user_agent;
pub mod variable;
