"""The port that the service answers on, taken before anything that takes time."""

import errno
import os
import socket

from models.errors import ConfigError
from service.settings import PREFIX

# `localhost` is often an address of IPv6 as well, on machines that have none.
_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host.

    A socket that is only bound keeps nobody else from the port: so it listens from here on, and
    who connects meanwhile waits.

    Args:
        host: name or address.
        port: 0 takes a free one, the same for all addresses.

    Raises:
        ConfigError: there is no such host, or the port is not free.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"{PREFIX}HOST: got {host!r}: {error.strerror}") from None
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in dict.fromkeys((entry[0], entry[4][0]) for entry in found):
        try:
            sockets.append(socket.create_server((str(address), port), family=family, backlog=2048))
        except OSError as error:
            absent = error
            if error.errno in _ABSENT:
                continue
            for taken in sockets:
                taken.close()
            raise ConfigError(not_free("PORT", host, port, error)) from None
        port = sockets[0].getsockname()[1]
    if not sockets:
        raise ConfigError(f"{PREFIX}HOST: got {host!r}: {_reason(absent)}")
    return sockets


def not_free(setting: str, host: str, port: int, error: OSError) -> str:
    """The sentence on a port that cannot be had."""
    return f"{PREFIX}{setting}: got {port} on {host}: {_reason(error)}, expected a free port"


def _reason(error: OSError | None) -> str:
    return os.strerror(error.errno) if error is not None and error.errno else str(error)


def address_of(listening: socket.socket) -> str:
    """As a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
