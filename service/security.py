"""Who may ask: API keys, kept as hashes, with a rate for each. Without keys predictions are open to
all who reach the port, and admin to nobody.

Keys are a JSON list of objects, in a file that is read again when it changes, or in a variable:

    [{"name": "lab", "sha256": "<of the key>", "admin": false, "molecules_per_minute": 60000}]

`python -m service key lab` makes a key and prints its entry. A plain SHA-256 is enough because such
a key has 256 random bits: nobody can guess it.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from models.errors import ConfigError
from service.rates import Rates

log = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 1.0


class Client(BaseModel):
    """Who holds a key.

    Attributes:
        name: shown in logs.
        sha256: of the key, in hexadecimal.
        admin: whether it may load and unload models.
        molecules_per_minute: over the last minute, by this key; None: no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    admin: bool = False
    molecules_per_minute: Annotated[int, Field(ge=1)] | None = None


_CLIENTS = TypeAdapter(list[Client])


class RateLimitedError(Exception):
    """A client asks for more than its rate allows."""

    def __init__(self, client: Client, retry_after_seconds: int) -> None:
        super().__init__(
            f"the key {client.name} may ask for {client.molecules_per_minute} molecules a minute,"
            f" try again in {retry_after_seconds} s"
        )
        self.retry_after_seconds = retry_after_seconds


class KeyRing:
    """The keys that open the service."""

    def __init__(
        self, text: str | None = None, file: Path | None = None, rates: Rates | None = None
    ) -> None:
        """Read the keys.

        Args:
            text: JSON.
            file: of the same; read again when it changes.
            rates: what was asked for; of this process alone if None.

        Raises:
            ConfigError: the file cannot be read, or the keys are not as expected.
        """
        self._file, self._rates = file, Rates() if rates is None else rates
        self._state = _state(file)
        self._looked = time.monotonic()
        self._clients = _read(text, file)

    @property
    def is_empty(self) -> bool:
        """Whether predictions are open to all."""
        return self._file is None and not self._clients

    def client_of(self, key: str) -> Client | None:
        """Who holds this key. The time it takes tells nothing of the keys."""
        self._look_again()
        digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
        matching = [
            client for client in self._clients if hmac.compare_digest(client.sha256, digest)
        ]
        return matching[0] if matching else None

    def named(self, name: str) -> Client | None:
        """The client of this name."""
        self._look_again()
        return next((client for client in self._clients if client.name == name), None)

    def spend(self, client: Client | None, molecules: int) -> None:
        """Count molecules against a client's rate. Raises RateLimitedError; nothing is counted
        then."""
        wait = self._spend(client, molecules)
        if client is not None and wait:
            raise RateLimitedError(client, wait)

    async def wait(self, client: Client | None, molecules: int) -> None:
        """As `spend`, for streams and jobs: they go as fast as the rate allows."""
        while seconds := self._spend(client, molecules):
            await asyncio.sleep(min(seconds, 1))

    def _spend(self, client: Client | None, molecules: int) -> int:
        """Seconds until it can be tried again; 0 if it is done."""
        if client is None or client.molecules_per_minute is None:
            return 0
        most = client.molecules_per_minute
        # More at once than a minute allows is let in when a whole minute's worth is there, or it
        # could never be.
        return self._rates.spend(client.name, min(molecules, most), most)

    def _look_again(self) -> None:
        if self._file is None or time.monotonic() - self._looked < _LOOK_AGAIN_SECONDS:
            return
        self._looked = time.monotonic()
        state = _state(self._file)
        if state == self._state:
            return
        self._state = state
        try:
            self._clients = _read(None, self._file)
            log.info("read %d API keys again", len(self._clients))
        # a slip of an editor must not lock everybody out, nor let anybody in
        except ConfigError as error:
            log.error("the API keys stay as they were: %s", error)


def new_key(name: str) -> tuple[str, Client]:
    """A fresh key and the entry that opens for it."""
    key = secrets.token_urlsafe(32)
    return key, Client(name=name, sha256=hashlib.sha256(key.encode()).hexdigest())


def _state(file: Path | None) -> tuple[int, int] | None:
    if file is None or not file.is_file():
        return None
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def _read(text: str | None, file: Path | None) -> Sequence[Client]:
    where = "API_KEYS" if file is None else f"API_KEYS_FILE {file}"
    try:
        clients = _CLIENTS.validate_json(file.read_bytes() if file is not None else text or "[]")
    except OSError as error:
        raise ConfigError(f"GMERGING_{where}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # never repeat what may be a key
        raise ConfigError(
            f"GMERGING_{where}: {'/'.join(map(str, first['loc']))}: {first['msg']}, expected a list"
            " of keys' entries"
        ) from None
    names = [client.name for client in clients]
    if len(set(names)) != len(names):
        raise ConfigError(f"GMERGING_{where}: got a name twice, expected each once")
    return clients
