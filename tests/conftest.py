"""Fixtures of the black-box tests: the binary, the proxy, scripted and real upstreams."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import servers
from harness.browser import Browser
from harness.cues import Cues
from harness.proxy import Binary, Proxy, Refused
from harness.upstream import Handler, Upstream

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--binary", help="the program under test (default: RINGX_BINARY, or target/PROFILE/ringx)")
    parser.addoption("--profile", default="release", choices=["release", "debug"], help="which build of ringx")
    parser.addoption("--epoll", action="store_true", help="io_uring is denied to the program, as in a container")


def binary_path(config: pytest.Config) -> Path:
    given = config.getoption("--binary") or os.environ.get("RINGX_BINARY")
    return Path(given) if given else servers.TARGET / config.getoption("--profile") / "ringx"


def pytest_configure(config: pytest.Config) -> None:
    # Loopback only: no proxy of the environment's has a say in these tests.
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    path = binary_path(config)
    if not path.exists():
        raise pytest.UsageError(f"no {path}: build it, or name another with --binary")
    config.stash[BINARY] = Binary(path.resolve(), config.getoption("--epoll"))


BINARY = pytest.StashKey[Binary]()


def pytest_report_header(config: pytest.Config) -> str:
    binary = config.stash[BINARY]
    return f"binary: {binary.path} ({binary.product})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under an nginx, a test may be known to fail, or have nothing to test."""
    if not config.stash[BINARY].is_nginx:
        return
    for item in items:
        if marker := item.get_closest_marker("differs_in_nginx"):
            item.add_marker(pytest.mark.xfail(reason=marker.args[0], strict=True))
        if marker := item.get_closest_marker("ringx_only"):
            item.add_marker(pytest.mark.skip(reason=marker.args[0]))


@pytest.fixture(scope="session")
def binary(pytestconfig: pytest.Config) -> Binary:
    return pytestconfig.stash[BINARY]


# The proxy.


@pytest.fixture
def upstream() -> Iterator[Callable[..., Upstream]]:
    """`upstream(handler, …)`: a scripted server. Ask for it before `proxy`, so that it ends later."""
    started: list[Upstream] = []

    def start(*handlers: Handler, **options) -> Upstream:
        started.append(Upstream(*handlers, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def proxy(binary: Binary, tmp_path: Path, upstream, request) -> Iterator[Callable[..., Proxy]]:
    """`proxy(configuration, name=value, …)`: runs the binary with it until the test ends."""
    started: list[Proxy] = []
    wanted = [name for marker in request.node.iter_markers("wants") for name in marker.args]

    def start(text: str, shards_by_default: bool = False, **values: object) -> Proxy:
        prefix = tmp_path / f"prefix{len(started) or ''}"
        started.append(Proxy(binary, prefix, text, shards_by_default, **values))
        try:
            return started[-1].start()
        except Refused as refused:
            if refused.directive in wanted:
                pytest.skip(str(refused))
            raise

    yield start
    errors = []
    for each in started:
        try:
            each.stop()
        except AssertionError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@pytest.fixture
def serve(proxy) -> Callable[..., Proxy]:
    """`serve(text, …)`: the proxy with `text` as the contents of `http`."""
    return lambda text, **values: proxy("events { }\nhttp {\n" + text + "\n}\n", **values)


@pytest.fixture(scope="module")
def shared(binary: Binary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Proxy]]:
    """`shared(server, http)`: a proxy with one server, started once for all tests of a file that ask
    for the same one: for tables of which a row is a request."""
    started: dict[tuple, Proxy] = {}

    def start(server: str, http: str = "", files: dict[str, str] | None = None, **values: object) -> Proxy:
        key = (server, http, *sorted(values.items()))
        if key not in started:
            text = f"events {{ }}\nhttp {{\n{http}\nserver {{\nlisten 127.0.0.1:@port@;\n{server}\n}}\n}}\n"
            proxy = Proxy(binary, tmp_path_factory.mktemp("shared"), text, **values)
            for name, content in (files or {}).items():
                path = proxy.prefix / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
            started[key] = proxy.start()
        return started[key]

    yield start
    for each in started.values():
        each.stop()


@pytest.fixture
def refused(binary: Binary, tmp_path: Path) -> Callable[[str], str]:
    """`refused(server)`: what `-t` says of a server with this text, without the place."""

    def run(server: str, http: str = "") -> list[str]:
        text = f"events {{ }}\nhttp {{\n{http}\nserver {{\nlisten 127.0.0.1:@port@;\n{server}\n}}\n}}\n"
        proxy = Proxy(binary, tmp_path / "refused", text)
        place = ("-p", f"{proxy.prefix}/", "-c", proxy.conf, "-e", "logs/error.log", "-g", "pid logs/nginx.pid;")
        done = binary.run(*place, "-t")
        lines = [line for line in done.stderr.splitlines() if line.startswith("nginx: [")]
        return [line.removeprefix("nginx: ").replace(f" in {proxy.conf}:", " in F:") for line in lines]

    return run


@pytest.fixture
def example(proxy, tmp_path: Path) -> Callable[..., Proxy]:
    """`example(file, {text: other})`: a file of conf/examples, unchanged but for these texts."""

    def start(name: str, changes: dict[str, str]) -> Proxy:
        text = (ROOT / "conf/examples" / name).read_text()
        for old, new in changes.items():
            assert old in text, f"no {old!r} in {name}"
            text = text.replace(old, new)
        conf = tmp_path / "prefix/conf"
        conf.mkdir(parents=True)
        for beside in ("uwsgi_params", "mime.types"):
            shutil.copy(ROOT / "conf" / beside, conf)
        return proxy(text, shards_by_default=True)

    return start


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    started = Browser(tmp_path)
    yield started
    started.stop()


@pytest.fixture(params=["tcp", "unix"])
def via(request) -> Callable:
    """The address of a real server, by TCP or by its unix socket."""
    return lambda server: server.address if request.param == "tcp" else f"unix:{server.path}"


@pytest.fixture
def front(serve) -> Callable[..., Proxy]:
    """`front(address, directives…)`: the proxy in front of this uwsgi server, with more lines in its location."""

    def start(address: str, *more: str) -> Proxy:
        lines = "\n".join(more)
        return serve(
            f"""
            server {{
                listen 127.0.0.1:@port@;
                client_max_body_size 0;
                include {ROOT}/conf/uwsgi_params;
                location / {{
                    uwsgi_pass {address};
                    {lines}
                }}
            }}
            """
        )

    return start


@pytest.fixture
def cues() -> Iterator[Cues]:
    """Where applications wait for what the test tells them."""
    started = Cues()
    yield started
    started.stop()


# Real servers, one of each for the whole session.

running: list[servers.Server] = []


def real(start: Callable, *arguments):
    @pytest.fixture(scope="session")
    def fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
        server = start(tmp_path_factory.mktemp("server"), *arguments)
        running.append(server)
        yield server
        # The session ends: each takes its time, but all at the same time.
        for each in running:
            each.interrupt()
        server.stop()

    return fixture


python_echo = real(servers.python_echo)
node_echo = real(servers.node_echo)
tutorial = real(servers.uwsgi, "tutorial:application", 4)
flask_app = real(servers.uwsgi, "flaskapp:app", 2)
uwsgi_app = real(servers.uwsgi, "uwsgiapp:application", 2, "--harakiri", "1")
django_app = real(servers.uwsgi, "djangoapp:application", 2)
gunicorn_app = real(servers.gunicorn, "flaskapp:app", "gthread", "--threads", "4")
bare_uwsgi = real(servers.uwsgi, "bare:application", 4)
bare_threads = real(servers.uwsgi, "bare:application", 1, "--enable-threads", "--threads", "8")
bare_gevent = real(servers.uwsgi, "bare:application", 1, "--gevent", "100", "--gevent-monkey-patch")
bare_harakiri = real(servers.uwsgi, "bare:application", 1, "--harakiri", "1")
bare_small = real(servers.uwsgi, "bare:application", 1, "--listen", "4")
bare_roomy = real(servers.uwsgi, "bare:application", 1, "--buffer-size", "32768")
bare_counted = real(servers.uwsgi, "counted:application", 8, "--listen", "16")
bare_sync = real(servers.gunicorn, "bare:application", "sync")
bare_gthread = real(servers.gunicorn, "bare:application", "gthread", "--threads", "4")
bare_green = real(servers.gunicorn, "bare:application", "gevent")
bare_asgi = real(servers.gunicorn, "bare_async:application", "asgi")
bare_gunicorn_26 = real(servers.gunicorn_26, "bare:application")
uwsgi_websocket = real(servers.system_uwsgi, "echo_websocket", 2)
jupyter = real(servers.jupyter, "only-for-tests")
home_assistant = real(servers.home_assistant)
node_one, node_two = real(servers.socketio, "one"), real(servers.socketio, "two")
news_app = real(servers.gunicorn_http, "news:app")
blue_app = real(servers.gunicorn_http, "whoami:app", "--env", "NAME=blue")
green_app = real(servers.gunicorn_http, "whoami:app", "--env", "NAME=green")
