"""API keys and rate limits.

Keys are stored as SHA-256 hashes. Without keys predictions are open to everybody who reaches the
port, and the admin routes are closed.

The keys are a JSON list of objects, in a file that is reloaded when it changes, or in a variable:

    [{"name": "lab", "sha256": "<of the key>", "admin": false, "molecules_per_minute": 60000}]

`python -m service key lab` generates a key and prints its entry. A plain SHA-256 is enough because
a key has 256 random bits, which nobody can guess.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from models.errors import ConfigError
from service.rates import Rates

log = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0
_NAME = r"^[A-Za-z0-9._-]{1,64}$"


class Client(BaseModel):
    """Holder of an API key.

    Attributes:
        name: name in the logs.
        sha256: SHA-256 of the key, in hexadecimal.
        admin: whether the key may load and unload models.
        molecules_per_minute: rate limit over a sliding minute; None for no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=_NAME)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    admin: bool = False
    molecules_per_minute: Annotated[int, Field(ge=1)] | None = None


_CLIENTS = TypeAdapter(list[Client])


class RateLimitedError(Exception):
    """A client has used up its molecules of this minute."""

    def __init__(self, client: Client, retry_after_seconds: int) -> None:
        super().__init__(
            f"the key {client.name} may ask for {client.molecules_per_minute} molecules a minute,"
            f" try again in {retry_after_seconds} s"
        )
        self.retry_after_seconds = retry_after_seconds


class KeyRing:
    """The API keys of the service, with the molecules that each has used."""

    def __init__(
        self, text: str | None = None, file: Path | None = None, rates: Rates | None = None
    ) -> None:
        """Read the keys.

        Args:
            text: the keys as JSON.
            file: file of the keys, reloaded when it changes; replaces `text`.
            rates: molecules counted per client; a count of this process alone if None.

        Raises:
            ConfigError: the file cannot be read, or the keys are not valid.
        """
        self._file, self._rates = file, Rates() if rates is None else rates
        self._stamp = _file_stamp(file)
        self._checked_at = time.monotonic()
        self._clients = _parse_clients(text, file)

    @property
    def is_empty(self) -> bool:
        """Whether there are neither keys nor a file of them, so that predictions are open."""
        return self._file is None and not self._clients

    def client_of(self, key: str) -> Client | None:
        """Return the client that holds a key, or None if nobody does.

        Every hash is compared in constant time: the duration says nothing about the keys.
        """
        self._reload_if_changed()
        digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
        clients = self._clients
        matching = [client for client in clients if hmac.compare_digest(client.sha256, digest)]
        return matching[0] if matching else None

    def client_named(self, name: str) -> Client | None:
        """Return the client of a name, or None."""
        self._reload_if_changed()
        return next((client for client in self._clients if client.name == name), None)

    def spend(self, client: Client | None, molecules: int) -> None:
        """Count molecules against a client's rate limit.

        Args:
            client: holder of the key; None, or a client without a limit, always passes.
            molecules: number of molecules of the request.

        Raises:
            RateLimitedError: the limit is exceeded; nothing was counted.
        """
        wait = self._spend(client, molecules)
        if client is not None and wait:
            raise RateLimitedError(client, wait)

    async def wait(self, client: Client | None, molecules: int) -> None:
        """Count molecules as `spend` does, but wait until the rate limit allows them.

        Streams and jobs use it: they run as fast as the limit allows.
        """
        while seconds := self._spend(client, molecules):
            await asyncio.sleep(min(seconds, 1))

    def _spend(self, client: Client | None, molecules: int) -> int:
        """Count molecules and return 0, or return the seconds until they will fit."""
        if client is None or client.molecules_per_minute is None:
            return 0
        limit = client.molecules_per_minute
        # A request over the whole limit counts as a full minute, or it could never be let in.
        return self._rates.spend(client.name, min(molecules, limit), limit)

    def _reload_if_changed(self) -> None:
        if self._file is None or time.monotonic() - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = time.monotonic()
        stamp = _file_stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._clients = _parse_clients(None, self._file)
            log.info("read %d API keys again", len(self._clients))
        except ConfigError as error:
            # A typo in the file must neither lock everybody out nor let anybody in.
            log.error("the API keys stay as they were: %s", error)


def new_key(name: str) -> tuple[str, Client]:
    """Generate an API key.

    Args:
        name: name of the client.

    Returns:
        The key, and the client entry that holds its hash.

    Raises:
        ConfigError: the name has other characters, or more than 64.
    """
    if not re.fullmatch(_NAME, name):
        expected = "expected 1 to 64 letters, digits, dots, underscores or hyphens"
        raise ConfigError(f"name: got {name[:80]!a}, {expected}")
    key = secrets.token_urlsafe(32)
    return key, Client(name=name, sha256=hashlib.sha256(key.encode()).hexdigest())


def _file_stamp(file: Path | None) -> tuple[int, int] | None:
    if file is None or not file.is_file():
        return None
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def _parse_clients(text: str | None, file: Path | None) -> Sequence[Client]:
    where = "API_KEYS" if file is None else f"API_KEYS_FILE {file}"
    try:
        clients = _CLIENTS.validate_json(file.read_bytes() if file is not None else text or "[]")
    except OSError as error:
        raise ConfigError(f"GMERGING_{where}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # the input may be a key
        raise ConfigError(
            f"GMERGING_{where}: {'/'.join(map(str, first['loc']))}: {first['msg']}, expected a list"
            " of keys' entries"
        ) from None
    names = [client.name for client in clients]
    if len(set(names)) != len(names):
        raise ConfigError(f"GMERGING_{where}: got a name twice, expected each once")
    return clients
