"""What the black-box tests stand on: the proxy under test, raw sockets, and real servers.

wire      a socket whose every wait has a deadline, and HTTP/1 messages read from it
upstream  a scripted server that keeps the bytes it was sent
proxy     the binary under test with a configuration in a folder of its own
group     several of these behind the proxy, told apart by their letters
proxied   one of these behind the proxy
servers   the real ones: WebSocket echo, uWSGI, gunicorn
browser   headless Chromium
packet    the uwsgi packet
tunnel    what goes through tunnels: handshakes, frames, floods that can be checked
"""
