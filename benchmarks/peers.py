"""Speed of other tools for the same predictions: ADMET-AI, and chemprop with one multi-task model.

    python -m benchmarks.molecules > work/molecules.txt
    python -m benchmarks.peers --molecules work/molecules.txt --threads 1

Each has its own environment, `work/peers/<environment>`, made at first use, and answers in its own
process there (`peer_runners/`). `TORCH_PIP` chooses the build of torch, as for make. The runners
import this file where nothing of ours is installed, so it needs only Python.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0"
# cuik_molmaker_pin, chemprop's featuriser in C++, is built for one version of RDKit and needs it
SHARED = ("chemprop==2.3.1", "cuik_molmaker_pin==2026.3.6", "lightning==2.6.6", "rdkit==2026.3.6")
REQUIREMENTS = {"admet_ai": ("admet-ai==2.0.1", *SHARED), "chemprop": SHARED}
"""Packages of each environment, besides torch."""


@dataclass(frozen=True)
class Variant:
    """A way to use a peer: its environment, which is also its runner's name, and the runner's
    mode.
    """

    environment: str
    mode: str
    about: str


PEERS = {
    "admet-ai": Variant(
        "admet_ai",
        "full",
        "ADMETModel.predict as it comes: 2 ensembles of 5, descriptors, DrugBank percentiles",
    ),
    "admet-ai-models": Variant(
        "admet_ai", "models", "ADMETModel.predict without descriptors and percentiles"
    ),
    "chemprop": Variant("chemprop", "rdkit", "Trainer.predict, as `chemprop predict` does"),
    "chemprop-cuik": Variant(
        "chemprop", "cuik", "Trainer.predict, atoms and bonds by cuik-molmaker"
    ),
    "chemprop-direct": Variant(
        "chemprop",
        "direct",
        "cuik-molmaker and the network's forward, without Trainer and DataLoader",
    ),
}
OF_FILES = {
    "chemprop-files": Variant(
        "chemprop", "files", "Trainer.predict with model after model, as `chemprop predict` does"
    ),
    "chemprop-files-direct": Variant(
        "chemprop",
        "files-direct",
        "cuik-molmaker once, and the forward of model after model, without Trainer",
    ),
    "gmerging": Variant("gmerging", "files", "the artifacts of `gmerging import-models`"),
}
"""Tools with model files that the caller names."""
OWN = "gmerging"
"""The environment of this process, in which our own artifacts are measured like a peer."""
MODELS = "BENCHMARK_MODELS"
"""Variable of a runner's process: its model files, separated as paths are."""


@dataclass(frozen=True)
class Timing:
    """Cost of one call.

    Attributes are wall and CPU seconds (all threads and children) and the number of molecules with
    finite numbers for all outputs.
    """

    wall_seconds: float
    cpu_seconds: float
    molecules: int


class Peer:
    """A peer in a process of its own, with its model loaded; a context manager.

    Attributes:
        info: `load_seconds` (imports and model), `model_seconds` (of these, the model), `versions`,
            `rss_bytes`, `threads`, `outputs`, `batch_size`.
    """

    info: dict[str, Any]

    def __init__(
        self,
        name: str,
        threads: int = 1,
        work: Path = ROOT / "work",
        batch_size: int | None = None,
        models: Sequence[Path] = (),
    ) -> None:
        """Start the process and wait for its model.

        Args:
            name: of `PEERS`, or of `OF_FILES`.
            threads: of torch and the libraries below it.
            batch_size: None for the peer's best.
            models: files or folders of models, for a peer of `OF_FILES`.
        """
        self._name, self._threads, self._batch_size = name, threads, batch_size
        self._models = os.pathsep.join(str(path.resolve()) for path in models)
        self._work = work.resolve() / "peers"

    def __enter__(self) -> Self:
        variant = (PEERS | OF_FILES)[self._name]
        python = environment(variant.environment, self._work)
        threads = str(self._threads)
        command = [
            *_runner(python, variant.environment),
            variant.mode,
            threads,
            str(self._work),
            str(self._batch_size or ""),
        ]
        pools = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads
        )
        variables = os.environ | pools | {"TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
        variables |= {MODELS: self._models}
        with (self._work / f"{self._name}.log").open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self.info = self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the process now."""
        return _rss_bytes(self._process.pid)

    def batch(self, smiles: Sequence[str]) -> Timing:
        """Predict all molecules in one call."""
        return Timing(**self._ask("batch", smiles))

    def single(self, smiles: Sequence[str]) -> list[float]:
        """Predict one molecule after another; return the seconds of each."""
        latencies: list[float] = self._ask("single", smiles)["latencies"]
        return latencies

    def values(self, smiles: Sequence[str]) -> dict[str, list[float]]:
        """Predict all molecules; return the numbers by the name of the output."""
        values: dict[str, list[float]] = self._ask("values", smiles)
        return values

    def _ask(self, what: str, smiles: Sequence[str]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, "smiles": list(smiles)}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended; see {self._work / self._name}.log")
        answer: dict[str, Any] = json.loads(line)
        return answer


def environment(name: str, folder: Path) -> Path:
    """Return the Python of a peer's environment, which is installed if it is missing or its pins
    differ.
    """
    if name == OWN:
        return Path(sys.executable)
    made, pins = folder / name / "pins.txt", "\n".join((TORCH, *REQUIREMENTS[name]))
    python = folder / name / "bin" / "python"
    if made.is_file() and made.read_text() == pins:
        return python
    print(f"making {folder / name}", file=sys.stderr, flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / name)], check=True)
    # torch first, so that no other package chooses its build
    subprocess.run([*pip, *shlex.split(os.environ.get("TORCH_PIP", "")), TORCH], check=True)
    subprocess.run([*pip, TORCH, *REQUIREMENTS[name]], check=True)
    subprocess.run([*_runner(python, name), "prepare", "1", str(folder), ""], check=True, cwd=ROOT)
    made.write_text(pins)
    return python


def _runner(python: Path, name: str) -> list[str]:
    return [str(python), "-m", f"benchmarks.peer_runners.{name}"]


@dataclass(frozen=True)
class Loaded:
    """A model that a runner has loaded.

    Attributes:
        predict: many SMILES in one call; returns the peer's answer.
        predict_one: one SMILES.
        answered: number of molecules with numbers in an answer of `predict`. Not timed.
        model_seconds: time to load the model, without imports.
        outputs: learned properties per molecule.
        batch_size: molecules in one pass of the network.
        values: the numbers of an answer of `predict` by the name of the output.
    """

    predict: Callable[[list[str]], Any]
    predict_one: Callable[[str], Any]
    answered: Callable[[Any], int]
    model_seconds: float
    outputs: int
    batch_size: int
    values: Callable[[Any], dict[str, list[float]]] | None = None


Load = Callable[[str, Path, int | None], Loaded]


def serve(load: Load, prepare: Callable[[Path], object] = lambda folder: None) -> None:
    """Run a runner: `mode threads folder batch_size` on the command line, then a line of JSON once
    the model is loaded and one for each line of standard input.

    Mode `prepare` only makes, once per environment, the files that `load` reads from the folder.
    """
    mode, threads, folder, batch_size = sys.argv[1:]
    if mode == "prepare":
        prepare(Path(folder))
        return
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # keep the peer's prints out of the answers
        began = time.perf_counter()
        import torch  # here, as it is in the peer's environment only and counts as loading

        torch.set_num_threads(int(threads))
        loaded = load(mode, Path(folder), int(batch_size) if batch_size else None)
        load_seconds = time.perf_counter() - began
        info = {
            "load_seconds": load_seconds,
            "model_seconds": loaded.model_seconds,
            "outputs": loaded.outputs,
            "batch_size": loaded.batch_size,
        }
        _write(
            out,
            info
            | {
                "threads": torch.get_num_threads(),
                "rss_bytes": _rss_bytes(),
                "versions": _versions(Path(sys.argv[0]).stem),
            },
        )
        for line in sys.stdin:
            request = json.loads(line)
            _write(out, _DOES[request["do"]](loaded, request["smiles"]))


def _batch(loaded: Loaded, smiles: list[str]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    answer = loaded.predict(smiles)
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    return asdict(Timing(wall, cpu, loaded.answered(answer)))


def _values(loaded: Loaded, smiles: list[str]) -> dict[str, Any]:
    if loaded.values is None:
        raise ValueError("got a peer without values, expected one that names its outputs")
    return loaded.values(loaded.predict(smiles))


def _single(loaded: Loaded, smiles: list[str]) -> dict[str, Any]:
    latencies, cpu = [], _cpu_seconds()
    for text in smiles:
        began = time.perf_counter()
        loaded.predict_one(text)
        latencies.append(time.perf_counter() - began)
    return {
        "wall_seconds": sum(latencies),
        "cpu_seconds": _cpu_seconds() - cpu,
        "molecules": len(smiles),
        "latencies": latencies,
    }


_DOES = {"batch": _batch, "single": _single, "values": _values}


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _rss_bytes(process: int | str = "self") -> int:
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def _versions(name: str) -> dict[str, str]:
    requirements = (TORCH, *REQUIREMENTS.get(name, ()))
    packages = [requirement.split("==")[0] for requirement in requirements]
    return {package: importlib.metadata.version(package) for package in packages}


def _write(out: IO[str], answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


def main() -> None:
    """Print the cost of each peer for a file of SMILES, one a line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "peers", nargs="*", metavar="peer", help=f"of {', '.join(PEERS)}; default: all"
    )
    parser.add_argument("--molecules", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument(
        "--singles",
        type=int,
        default=50,
        help="how many of the molecules are also asked for one at a time",
    )
    arguments = parser.parse_args()
    smiles = arguments.molecules.read_text().split()
    for name in arguments.peers or PEERS:
        with Peer(name, arguments.threads, batch_size=arguments.batch_size) as peer:
            peer.batch(smiles[:64])
            timing, latencies = peer.batch(smiles), sorted(peer.single(smiles[: arguments.singles]))
            found = {
                "molecules_per_second": timing.molecules / timing.wall_seconds,
                "median_latency_seconds": latencies[len(latencies) // 2],
            }
            print(name, json.dumps(peer.info | asdict(timing) | found), flush=True)


if __name__ == "__main__":
    main()
