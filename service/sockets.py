"""Listening sockets, opened before the models are loaded."""

import errno
import os
import socket

from models.errors import ConfigError
from service.settings import PREFIX

# `localhost` often resolves to an IPv6 address too, on machines without IPv6.
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def listen(host: str, port: int) -> list[socket.socket]:
    """Open a listening socket for every address of a host.

    A socket that is only bound does not keep others from the port. These listen at once; clients
    that connect before the service has started wait in the backlog.

    Args:
        host: host name or IP address.
        port: port number; 0 takes a free port, the same for all addresses.

    Raises:
        ConfigError: the host cannot be resolved, or the port is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"{PREFIX}HOST: got {host!r}: {error.strerror}") from None
    sockets: list[socket.socket] = []
    unavailable: OSError | None = None
    for family, address in dict.fromkeys((entry[0], entry[4][0]) for entry in found):
        try:
            sockets.append(socket.create_server((str(address), port), family=family, backlog=2048))
        except OSError as error:
            unavailable = error
            if error.errno in _NO_SUCH_ADDRESS:
                continue
            for listening in sockets:
                listening.close()
            raise ConfigError(port_error("PORT", host, port, error)) from None
        port = sockets[0].getsockname()[1]
    if not sockets:
        raise ConfigError(f"{PREFIX}HOST: got {host!r}: {_reason(unavailable)}")
    return sockets


def port_error(setting: str, host: str, port: int, error: OSError) -> str:
    """Return the message for a port that cannot be opened.

    Args:
        setting: name of the setting, without its prefix.
        host: address that was tried.
        port: port that was tried.
        error: error of the operating system.
    """
    return f"{PREFIX}{setting}: got {port} on {host}: {_reason(error)}, expected a free port"


def _reason(error: OSError | None) -> str:
    return os.strerror(error.errno) if error is not None and error.errno else str(error)


def url_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
