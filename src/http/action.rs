//! What a connection is doing: the `while …` of an error-log line.

/// In nginx's words (operations, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    #[default]
    WaitingForRequest,
    ReadingProxyProtocol,
    ReadingRequestLine,
    ReadingRequestHeaders,
    ReadingPipelinedRequestLine,
    /// Nothing that nginx names: the request is being worked on.
    Processing,
    SendingResponse,
    ConnectingToUpstream,
    SendingRequestToUpstream,
    ReadingUpstreamHead,
    ReadingUpstream,
    /// A server's response, by nginx's words for the upstream module.
    SendingToClient,
    ProxyingUpgraded,
    Keepalive,
    ClosingRequest,
    LoggingRequest,
}

impl Action {
    pub fn phrase(self) -> Option<&'static str> {
        Some(match self {
            Action::WaitingForRequest => "waiting for request",
            Action::ReadingProxyProtocol => "reading PROXY protocol",
            Action::ReadingRequestLine => "reading client request line",
            Action::ReadingRequestHeaders => "reading client request headers",
            Action::ReadingPipelinedRequestLine => "reading client pipelined request line",
            Action::Processing => return None,
            Action::SendingResponse => "sending response to client",
            Action::ConnectingToUpstream => "connecting to upstream",
            Action::SendingRequestToUpstream => "sending request to upstream",
            Action::ReadingUpstreamHead => "reading response header from upstream",
            Action::ReadingUpstream => "reading upstream",
            Action::SendingToClient => "sending to client",
            Action::ProxyingUpgraded => "proxying upgraded connection",
            Action::Keepalive => "keepalive",
            Action::ClosingRequest => "closing request",
            Action::LoggingRequest => "logging request",
        })
    }
}
