//! Files.
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::phase::Outcome;
use crate::http::request::Request;

pub async fn serve(_c: &Connection, _r: &mut Request) -> Result<Outcome, Close> {
    Ok(Outcome::Status(404))
}
