//! Configuration text to checked, applied settings. Knows no module and no socket.

pub mod address;
pub mod apply;
pub mod check;
pub mod cidr;
pub mod diagnostic;
pub mod directive;
pub mod lexer;
pub mod manual;
pub mod setting;
pub mod tree;
pub mod value;
