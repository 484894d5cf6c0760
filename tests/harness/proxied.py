"""The proxy in front of one scripted server, and what tests of such an exchange send."""

from collections.abc import Callable

from .proxy import Proxy
from .upstream import Handler, Upstream

# nginx before 1.29.7 speaks HTTP/1.0 and says close, unless told otherwise.
MODERN = 'proxy_http_version 1.1; proxy_set_header Connection "";'
GET = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
# Heads of responses.
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def proxied(
    serve: Callable[..., Proxy],
    upstream: Callable[..., Upstream],
    *handlers: Handler,
    log: str = "$status $upstream_status",
    http: str = "",
    listen: str = "",
    location: str = "",
    pass_: str = "proxy_pass http://@upstream@;",
    modern: bool = True,
) -> tuple[Proxy, Upstream]:
    """`/` is passed on to a server with these handlers; `/plain` is the proxy's own. `log` is the format
    of the access log."""
    server = upstream(*handlers)
    proxy = serve(
        f"""
        log_format outcome '{log}';
        access_log logs/access.log outcome;
        {http}
        server {{
            listen 127.0.0.1:@port@ {listen};
            {MODERN if modern else ""}
            location / {{
                {location}
                {pass_}
            }}
            location = /plain {{ return 200 plain; }}
        }}
        """,
        upstream=server.address,
    )
    return proxy, server
