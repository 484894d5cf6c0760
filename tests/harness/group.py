"""A group of scripted servers behind the proxy, told apart by their letters."""

import re
from collections.abc import Callable

from .ports import free_port
from .proxy import Proxy
from .upstream import Handler, Upstream, answering, response


def letter(name: str, *fields: str) -> Handler:
    """Answers with its letter."""
    return answering(response(name.encode(), *fields))


def grouped(
    serve: Callable[..., Proxy],
    upstream: Callable[..., Upstream],
    lines: list[str],
    method: str = "",
    after: str = "",
    handler: Callable[[str], Handler] = letter,
) -> Proxy:
    """The proxy in front of a group with one `server` line for each of `lines`, where `A` to `Z` stand
    for servers with the handlers of these names, `dead` for a closed port. The proxy's `addresses` are
    those of the names, its `servers` what is written after `server`."""
    addresses: dict[str, str] = {}

    def address(match: re.Match) -> str:
        name = match[0]
        if name not in addresses:
            dead = f"127.0.0.1:{free_port()}"
            addresses[name] = dead if name == "dead" else upstream(handler(name)).address
        return addresses[name]

    written = [re.sub(r"\b([A-Z]|dead)\b", address, line) for line in lines]
    servers = "\n".join(f"server {line};" for line in written)
    proxy = serve(
        f"""
        log_format upstream '$upstream_status $upstream_addr';
        access_log logs/access.log upstream;
        upstream group {{ {method} {servers} {after} }}
        server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
        """
    )
    proxy.addresses = addresses
    proxy.servers = [line.split(" ")[0] for line in written]
    return proxy
