"""Settings of the service, read once from the environment."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.device import DeviceChoice
from models.errors import ConfigError, did_you_mean
from models.names import Name
from models.released import DEFAULT_RELEASE, RELEASES

PREFIX = "GMERGING_"
RELEASED_ARTIFACT = RELEASES / DEFAULT_RELEASE
OTHER_VARIABLES = frozenset(
    {
        "GMERGING_DATA",
        "GMERGING_WORK",
        "GMERGING_PUBLISHED_PORT",
        "GMERGING_CHEMPROP_PYTHON",
        "GMERGING_ADMET_AI_WHEEL",
        "GMERGING_KSERVE_PYTHON",
        "GMERGING_RAY_PYTHON",
    }
)
"""Variables with the prefix that are no settings: the command `gmerging` reads the first two,
docker-compose.yml the third, and the tests the others."""
LogLevel = Literal["debug", "info", "warning", "error"]


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError:
        raise ValueError("the folder that it is relative to, the current one, is gone") from None


def _origin(text: str) -> str:
    if text not in ("*", "null") and not _ORIGIN.fullmatch(text):
        raise ValueError("expected scheme://host or scheme://host:port, or *")
    return text.lower()  # browsers send it in lower case


_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(:[0-9]+)?")
_Origin = Annotated[str, AfterValidator(_origin)]
# Absolute, because the service leaves its folder before it starts workers.
_Path = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """Settings of the service; each is read from the environment variable `GMERGING_<NAME>`.

    The default size limits hold all of MoleculeNet: its largest molecule has 492 atoms, and its
    longest SMILES 1340 characters.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    # Loopback, because by default there are no keys; the container image listens on 0.0.0.0.
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="port of `/metrics`, which then is not on the main one"
    )
    artifact: _Path = Field(
        RELEASED_ARTIFACT,
        description="folder of the artifact that answers requests which name no model",
    )
    model_name: Name | None = Field(
        None,
        description=(
            "name of that model in requests, addresses and metrics; its artifact's if left out"
        ),
    )
    models: _Path | None = Field(
        None,
        description=(
            "folder of further artifacts, one folder in it for each; a folder's name is the model's"
        ),
    )
    structures: _Path | None = Field(
        None,
        description=(
            "file of training molecules (`gmerging domain-structures`), whose structures and"
            " measured values explanations then show"
        ),
    )
    watch_seconds: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description=(
            "how often to look for changed, new and removed artifacts; 0: only when an admin asks"
        ),
    )
    device: DeviceChoice = Field("auto", description="auto takes a GPU where there is one")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="processes that answer, each with its own models, queue and cache",
    )
    # More threads speed up one large request on idle cores, and hurt on busy ones
    # (measured: 1.7 to 2.7 times slower with two threads on two busy cores).
    threads: int = Field(1, ge=1, le=1024, description="torch threads of one model pass")
    parsers: int = Field(
        2, ge=1, le=256, description="processes that read molecules, for each worker"
    )
    parse_timeout_seconds: float = Field(5, gt=0, le=3600, description="time to read one molecule")
    request_timeout_seconds: float = Field(
        30, gt=0, le=3600, description="time to answer; `X-Request-Timeout` may ask for less"
    )
    max_molecules: int = Field(1000, ge=1, description="molecules in one request")
    max_atoms: int = Field(
        500, ge=1, description="heavy atoms in one molecule; a graph may have twice as many bonds"
    )
    # RDKit reads long chains in quadratic time: 2000 characters cost up to 60 ms.
    max_smiles_length: int = Field(2000, ge=1, description="characters in one SMILES")
    max_body_bytes: int = Field(
        4 * 1024**2, ge=1024, description="bytes in one request, and in one line of a stream"
    )
    max_file_bytes: int = Field(1024**3, ge=1024, description="bytes in one uploaded file")
    # On a CPU throughput is flat from 2500 to 9000 and falls beyond (caches), and a pass delays the
    # next request; a GPU needs far more. Molecules of one pass share work (models.compiled):
    # 16384 is 80 molecules for eight tasks, a tenth of a second.
    max_batch_cost: int = Field(
        16384,
        ge=1,
        description="atoms times streams in one model pass; tasks that share a stream count once",
    )
    max_pending_cost: int = Field(
        500_000,
        ge=1,
        description=(
            "atoms (characters, before it is parsed) times tasks that may wait; more is refused"
        ),
    )
    max_streams: int = Field(16, ge=1, description="streams and direct file answers at a time")
    cache_bytes: int = Field(
        64 * 1024**2,
        ge=0,
        description="answers to keep for molecules that are asked for again; 0 keeps none",
    )
    jobs: _Path | None = Field(
        None, description="folder of jobs and their results; without one there are no jobs"
    )
    job_hours: float = Field(
        24, gt=0, allow_inf_nan=False, description="how long the result of a job is kept"
    )
    direct_file_bytes: int = Field(
        256 * 1024,
        ge=0,
        description="a larger file becomes a job, where there is a folder for jobs",
    )
    api_keys_file: _Path | None = Field(
        None, description="JSON list of keys; read again when it changes"
    )
    api_keys: str | None = Field(None, description="the same list, in the variable itself")
    cors_origins: Annotated[tuple[_Origin, ...], NoDecode] = Field(
        (), description="web origins that may call, separated by commas; none by default"
    )
    log_format: Literal["json", "text"] = Field("json", description="json: one object a line")
    log_level: LogLevel = Field(
        "info", description="info has one line per request, warning only what went wrong"
    )
    tracing: bool = Field(
        False,
        description=(
            "OpenTelemetry traces, exported as its own `OTEL_*` variables say (needs the extra"
            " `tracing`)"
        ),
    )
    drain_seconds: float = Field(
        0,
        ge=0,
        le=3600,
        description=(
            "when told to stop, time in which `/readyz` says no and requests are still answered"
        ),
    )
    shutdown_seconds: int = Field(
        30, ge=1, le=3600, description="time to finish what is in flight after that"
    )

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: dict[str, object]) -> dict[str, object]:
        origins = values.get("cors_origins")
        if not isinstance(origins, str):
            return values
        named = filter(None, map(str.strip, origins.split(",")))
        return {**values, "cors_origins": tuple(named)}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_pending_cost < self.max_batch_cost:
            raise ValueError(
                f"got {PREFIX}MAX_PENDING_COST {self.max_pending_cost}, expected at least"
                f" {PREFIX}MAX_BATCH_COST, {self.max_batch_cost}: a queue that holds less than one"
                " pass starves the model"
            )
        if self.api_keys is not None and self.api_keys_file is not None:
            raise ValueError(
                f"got both {PREFIX}API_KEYS and {PREFIX}API_KEYS_FILE, expected one of them"
            )
        if self.models is not None and not self.models.is_dir():
            raise ValueError(f"got {PREFIX}MODELS {self.models}, expected a folder")
        return self


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigError: a variable has an invalid value, has the prefix and is no setting, or is given
            in two spellings. The message names all of them, and for an unknown one the setting of
            the nearest name.
    """
    errors = [_unknown(name) for name in os.environ if _is_unknown(name.upper())]
    errors += [
        f"got {name} and {name.upper()}, expected one of them"
        for name in os.environ
        if name.upper() in variable_names() and name != name.upper() and name.upper() in os.environ
    ]
    try:
        settings = Settings()
    except ValidationError as error:
        errors += [_describe(item["loc"], item["msg"], item["input"]) for item in error.errors()]
    if errors:
        raise ConfigError("; ".join(errors))
    return settings


def variable_names() -> list[str]:
    """Return the names of the environment variables of all settings."""
    return [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]


def _is_unknown(name: str) -> bool:
    return name.startswith(PREFIX) and name not in OTHER_VARIABLES and name not in variable_names()


def _unknown(name: str) -> str:
    return f"got {name}, which is no setting{did_you_mean(name.upper(), variable_names(), PREFIX)}"


def _describe(location: tuple[int | str, ...], message: str, value: object) -> str:
    reason = message.removeprefix("Value error, ")
    if not location:
        return reason
    return f"{PREFIX}{str(location[0]).upper()}: got {value!r}: {reason}"
