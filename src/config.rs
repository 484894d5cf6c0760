//! Text to checked, applied settings. Knows no module and no socket.

pub mod setting;
