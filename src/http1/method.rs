//! What a request line says in one word: the method and the version.

/// Any 1.N with N above 1 is taken as 1.1 (RFC 9110 section 2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// No version in the request line: the answer has no head.
    Http09,
    /// Also what an answer goes by as long as the version has not been read.
    #[default]
    Http10,
    Http11,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Connect,
    Trace,
    /// Any other; passed on as it is.
    #[default]
    Other,
}

impl Method {
    /// Methods are case-sensitive (RFC 9110 section 9.1).
    pub fn of(method: &[u8]) -> Method {
        match method {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"PATCH" => Method::Patch,
            b"CONNECT" => Method::Connect,
            b"TRACE" => Method::Trace,
            _ => Method::Other,
        }
    }
}
