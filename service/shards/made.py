"""Shards, and what is made of them: by the metadata of an output one knows whether it is done."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from models.extras import optional_package
from service.shards.places import Identity, files_at, joined
from service.shards.request import ScreenRequest

METADATA = b"gmerging"
"""Key of what an output says of itself in the metadata of its file: JSON."""
_PARQUET = ".parquet"


@dataclass(frozen=True)
class Shard:
    """A shard to screen.

    Attributes:
        name: its relative path; ids of records without one begin with it.
        address: where it is.
        output: address of what is made of it.
    """

    name: str
    address: str
    output: str


def output_of(folder: str, name: str) -> str:
    """Return the address of the output of a shard. The whole relative path of the input is in it:
    `a/part-0.csv` and `b/part-0.csv` become two files."""
    made = name if PurePosixPath(name).suffix.lower() == _PARQUET else name + _PARQUET
    return joined(folder, made)


@dataclass(frozen=True)
class Made:
    """The output of a shard.

    Attributes:
        about: what it says of itself; empty if it is not the output of a screening.
        skipped: whether it was there before.
    """

    about: Mapping[str, Any]
    skipped: bool = True

    @property
    def rows(self) -> int:
        """Number of rows of the input."""
        return int(self.about["rows"])

    @property
    def kept(self) -> int:
        """Number of rows of the output."""
        return int(self.about["kept"])

    @property
    def failed(self) -> Mapping[str, int]:
        """Number of rows of the input with an error, by code."""
        return self.about["failed"]  # type: ignore[no-any-return]

    def is_of(self, expected: Mapping[str, Any]) -> bool:
        """Return whether the output is of this input, model and request."""
        return self.about.get("input") == expected["input"] and self.has_settings_of(expected)

    def has_settings_of(self, expected: Mapping[str, Any]) -> bool:
        """Return whether the output is of this model and request, whatever its input was."""
        model = self.about.get("model", {}).get("digest")
        return (model, self.about.get("request")) == (
            expected["model"]["digest"],
            expected["request"],
        )

    @property
    def described(self) -> str:
        """What the output is of, for messages."""
        if not self.about:
            return "no output of a screening"
        model = self.about["model"]
        name = f"model {model['name']} {model['version']} ({model['digest'][:12]})"
        return f"the output of {name}, or of other settings"


def depends_on(
    shard: Shard, identity: Identity, digest: str, request: ScreenRequest
) -> dict[str, Any]:
    """Return all that the rows of an output depend on, as its metadata have it."""
    return {
        "input": {"name": shard.name, **asdict(identity)},
        "model": {"digest": digest},
        "request": request.model_dump(mode="json"),
    }


def made_of(output: str) -> Made | None:
    """Return what is at the address of an output; None if nothing is."""
    parquet = optional_package("pyarrow.parquet", "Parquet", "predict")
    try:
        with files_at(output).looked_into(output) as stream:
            metadata = parquet.read_metadata(stream).metadata or {}
            about = json.loads(metadata.get(METADATA, b"{}"))
    except FileNotFoundError:
        return None
    except ValueError:  # no Parquet file, or no JSON
        return Made({})
    return Made(about if isinstance(about, dict) else {})
