import errno
import socket

import pytest

from models.errors import ConfigError
from service.sockets import listen, port_error, url_of


@pytest.mark.parametrize(
    ("host", "found"),
    [("localhost", "http://"), ("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://0.0.0.0:")],
)
def test_listens_on_every_address_of_a_host_and_on_one_port(host: str, found: str) -> None:
    sockets = listen(host, 0)
    assert len({listening.getsockname()[1] for listening in sockets}) == 1
    with pytest.raises(ConfigError, match="Address already in use"):  # held from here on
        listen(host, sockets[0].getsockname()[1])
    for listening in sockets:
        assert url_of(listening).startswith(found)
        listening.close()


def test_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match=r"GMERGING_HOST: got '192\.0\.2\.1': Cannot assign"):
        listen("192.0.2.1", 0)


def test_port_that_is_taken_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"GMERGING_PORT: got {port} on 127.0.0.1: Address already in use, expected a free"
        with pytest.raises(ConfigError, match=message):
            listen("127.0.0.1", port)


def test_message_of_an_error_with_and_without_a_number() -> None:
    denied = OSError(errno.EACCES, "any text")
    assert port_error("PORT", "::", 80, denied) == (
        "GMERGING_PORT: got 80 on ::: Permission denied, expected a free port"
    )
    assert port_error("METRICS_PORT", "h", 1, OSError("odd")) == (
        "GMERGING_METRICS_PORT: got 1 on h: odd, expected a free port"
    )


def test_clients_wait_from_the_moment_on_which_the_port_is_taken() -> None:
    (listening,) = listen("127.0.0.1", 0)
    with listening, socket.create_connection(listening.getsockname()[:2], 10) as client:
        accepted, _ = listening.accept()
        with accepted:
            client.sendall(b"early")
            assert accepted.recv(5) == b"early"


@pytest.fixture
def _has_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")


@pytest.mark.usefixtures("_has_ipv6")
def test_url_of_an_address_of_ipv6_has_brackets() -> None:
    (listening,) = listen("::1", 0)
    with listening:
        assert url_of(listening) == f"http://[::1]:{listening.getsockname()[1]}"


def test_address_that_this_machine_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `::1` of `localhost`, where there is no IPv6."""
    inet = socket.AF_INET
    found = [(inet, 0, 0, "", ("192.0.2.1", 0)), (inet, 0, 0, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    (listening,) = listen("localhost", 0)
    with listening:
        assert listening.getsockname()[0] == "127.0.0.1"
