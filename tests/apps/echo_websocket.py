"""The WebSocket API of uWSGI: what comes goes back, text as text and bytes as bytes."""

import uwsgi


def application(env, start_response):
    if "HTTP_UPGRADE" not in env:
        start_response("200 OK", [("Content-Length", "5")])
        return [b"plain"]
    uwsgi.websocket_handshake(env["HTTP_SEC_WEBSOCKET_KEY"], env.get("HTTP_ORIGIN", ""))
    send = uwsgi.websocket_send_binary if env["PATH_INFO"] == "/binary" else uwsgi.websocket_send
    try:
        while True:
            send(uwsgi.websocket_recv())
    except OSError:  # how the end is told, also that by a close frame
        return []
