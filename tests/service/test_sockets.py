import pytest

from models.errors import ConfigError
from service.sockets import listen, url_of


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
