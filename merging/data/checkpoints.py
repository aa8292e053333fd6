"""Pre-trained weights: published checkpoints by name, downloaded on first use, or files by path."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pooch
import requests
from safetensors import safe_open

from merging.data.files import reading, sha256
from models.errors import CheckpointError, did_you_mean
from models.files import write_atomically

REPOSITORY = "https://github.com/snap-stanford/pretrain-gnns"
_COMMIT = "8b20528a83b8869ce16451305b32c827258d19a3"
SOURCE = f"https://raw.githubusercontent.com/snap-stanford/pretrain-gnns/{_COMMIT}"
"""Base URL of the published files; `published_path` gives the path below it."""
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 2**16
# fmt: off
PUBLISHED = {
    # For the GIN files only git's object ids are known: SHA-1 over size and bytes.
    "gin_contextpred": "git:60912ba5a4562639c0492dd3e446b2da5a828c2d",
    "gin_edgepred": "git:2a5311ea63caa598130aec65c64bc0ae09779856",
    "gin_infomax": "git:779a0924f02cc347d11b8c92f21ecfda289f7b70",
    "gin_masking": "git:821fce4a9e77fc1a1794ee0859499d0087a56e5e",
    "gin_supervised": "git:b0257d2181fcddf100db41bf982dc7dad1313ad5",
    "gin_supervised_contextpred": "git:f2b12b211eace32c070c241b5047484f8fec9b7a",
    "gin_supervised_edgepred": "git:2cae8e4b2207f8de1b2ec1ab25a1cdef29ab76a7",
    "gin_supervised_infomax": "git:eda3919ca23386527aacf4480b0b49bdaaf4a963",
    "gin_supervised_masking": "git:1f8de843feb5b51e73488a95096283028820583e",
    "gcn_contextpred":
        "sha256:ff1d9c5e5c198b8faf8af576c303808853e3f55a52aed7ae27964e3c8635a81a",
    "gcn_supervised":
        "sha256:8fb73bcce4991d6778e7309474505fcf2e5ff69f5debf166a5e6b91edf3f1493",
    "gcn_supervised_contextpred":
        "sha256:49cf0465e623c14fc802cdc67b47cbb78326f43fc7991afe6a14e1ff471755d5",
    "graphsage_contextpred":
        "sha256:63976e7795ae3ab46fc97c40a047ce1c4b13e243c2f8ef9125e78c7fabee9279",
    "graphsage_supervised":
        "sha256:9e2572f66e4e3c6a21b1e897c642b545abc8c6cbab1d56888c37f963b0c6da4b",
    "graphsage_supervised_contextpred":
        "sha256:aca7caa7c15a0e478b57d5d2cca84d8bda6d4500614bd96486b84739bff3929b",
    "gat_contextpred":
        "sha256:de030068b3cb8b5d2d4da09fd377fac0a111f401904d3806104874e058bc4af8",
    "gat_supervised":
        "sha256:62edee2aaf82c82e24236fe0124d93d975c4cb7b5e01280bc63050c606f64541",
    "gat_supervised_contextpred":
        "sha256:ad433c867915b166fbc98154d763eaa83fa53cd60bf3a3b0c2086a0ef7dc684e",
}
# fmt: on
"""Digests of Hu et al.'s checkpoints (MIT), by the names that `pretrained.weights` accepts."""


BUNDLED = {
    path.stem: path
    for path in sorted((Path(__file__).parents[1] / "weights").glob("*.safetensors"))
}
"""Files of weights that come with the package, by the names that `pretrained.weights` accepts; made
by `gmerging pretrain`, whose record is in their metadata."""


def published_path(name: str) -> str:
    """Return the path of a published checkpoint within its repository."""
    kind, training = name.split("_", 1)
    if kind == "gin":
        return f"chem/model_gin/{training}.pth"
    return f"chem/model_architecture/{name}.pth"


def find_checkpoint(weights: str, work: Path, data: Path) -> Path:
    """Find the file of a checkpoint; a published one that is not on disk is downloaded into the
    user's cache.

    Args:
        weights: a path (as given, in the work folder, or beside the data folder), a name in
            `BUNDLED`, or a name in `PUBLISHED`, looked up in `weights/hu2020` beside the data
            folder, then in the cache, then downloaded.
        work: the work folder.
        data: the data folder.

    Returns:
        The path of an existing file.

    Raises:
        CheckpointError: neither a file nor a published name, a file whose digest is not the
            published one, or a failed download.
    """
    candidates = [Path(weights), work / weights, data.parent / weights]
    for path in candidates:
        if path.is_file():
            return path
    if weights in BUNDLED:
        return BUNDLED[weights]
    if weights not in PUBLISHED:
        raise CheckpointError(_unknown(weights, candidates))
    digest = PUBLISHED[weights]
    beside, cached = _places(weights, data)
    if beside.is_file():
        _check(beside, digest, str(beside))
        return beside
    if not cached.is_file() or not _matches(cached, digest):
        _download(f"{SOURCE}/{published_path(weights)}", cached, digest)
    return cached


def published_files(data: Path) -> dict[Path, bool]:
    """Return the files of published checkpoints that are on disk, beside the data folder or in the
    user's cache, and whether each has the published digest."""
    places = {path: name for name in PUBLISHED for path in _places(name, data)}
    return {
        path: _matches(path, PUBLISHED[name]) for path, name in places.items() if path.is_file()
    }


def _places(name: str, data: Path) -> tuple[Path, Path]:
    """Return where the file of a published checkpoint may be: beside the data, in the cache."""
    file = Path("hu2020") / f"{name}.pth"
    return data.parent / "weights" / file, Path(pooch.os_cache("gmerging")) / file


def origin(weights: str, file: Path) -> str:
    """Describe where a checkpoint came from, for model cards and manifests.

    A published checkpoint is recognised by its digest and a file of `gmerging pretrain` by its
    metadata; any other file is named by its path and SHA-256.
    """
    digests = {_digest(file, algorithm) for algorithm in _ALGORITHMS}
    for name, digest in PUBLISHED.items():
        if digest in digests:
            address = f"{REPOSITORY}/blob/{_COMMIT}/{published_path(name)}"
            return f"Hu et al. 2020, {name} (MIT), {address}"
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as stream:
            metadata = stream.metadata() or {}
        if "record" in metadata:  # written by `gmerging pretrain`
            record = json.loads(metadata["record"])
            run = f"setting {record['config']['setting']}, seed {record['seed']}"
            return f"gmerging pretrain, {run}, SHA-256 {sha256(file)}"
    return f"file {weights}, SHA-256 {sha256(file)}"


def is_finished(path: Path, key: str) -> bool:
    """Return whether a file holds what `gmerging pretrain` has made to the end for the key of its
    settings. Raises DataError: the file is damaged."""
    if not path.is_file():
        return False
    with reading(path), safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    return bool(metadata["key"] == key and json.loads(metadata["record"])["finished"])


def _download(url: str, file: Path, digest: str) -> None:
    """Download a file, and put it in place only if it is complete and has the digest."""
    http = pooch.HTTPDownloader(progressbar=True, timeout=_TIMEOUT_SECONDS, chunk_size=_CHUNK_BYTES)

    def download(temporary: Path) -> None:
        http(url, str(temporary), None)
        _check(temporary, digest, url)

    remedy = f"expected the pre-trained weights; or put the file at {file} yourself"
    try:
        write_atomically(file, download)
    except requests.HTTPError as error:
        raise CheckpointError(f"got {error}, {remedy}") from error
    except requests.Timeout as error:
        waited = f"got nothing from {url} in {_TIMEOUT_SECONDS} s"
        raise CheckpointError(f"{waited}, {remedy}") from error
    except requests.RequestException as error:
        broken = f"got no connection, or one that broke off, to {url} ({type(error).__name__})"
        raise CheckpointError(f"{broken}, {remedy}") from error


def _check(file: Path, digest: str, source: str) -> None:
    if not _matches(file, digest):
        got = _digest(file, digest.split(":")[0])
        raise CheckpointError(f"{source}: got {got}, expected the published file's {digest}")


def _matches(file: Path, digest: str) -> bool:
    return _digest(file, digest.split(":")[0]) == digest


def _digest(file: Path, algorithm: str) -> str:
    return f"{algorithm}:{_ALGORITHMS[algorithm](file)}"


def _git_object(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_ALGORITHMS: dict[str, Callable[[Path], str]] = {"sha256": sha256, "git": _git_object}


def _unknown(weights: str, candidates: list[Path]) -> str:
    found = f"got no pre-trained weights at {' or '.join(map(str, candidates))}"
    if Path(weights).stem in PUBLISHED:
        return f"{found}, expected a file, or the name {Path(weights).stem}, which is fetched"
    names = [*BUNDLED, *PUBLISHED]
    hint = did_you_mean(weights, names)
    return f"{found}, expected a file, or one of the names {', '.join(names)}{hint}"
