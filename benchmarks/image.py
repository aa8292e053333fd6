"""The container image: what is in it, how soon it answers, and whether it answers as we do here.

    python -m benchmarks.image --after g-merging:0.1.0
    python -m benchmarks.image --after g-merging:0.1.0 --before old  # beside an older one, in turns

The base image counts by itself: it is the registry's, and a machine without a registry builds
another one. A start is timed from `docker run`, with a read-only file system as Compose has it, to
the first 200 of `/readyz`. Its answers are compared with this environment's, and the
tests of the golden artifacts run in it. Needs Docker, and pip for pytest. Writes
`benchmarks/results/image.json`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

from benchmarks.measuring import RESULTS, machine
from merging.data.files import write_json
from models.released import released
from service.core.artifact_engine import load_engine
from service.core.reading import MoleculeLimits, Parsed, read_all
from service.settings import Settings

MOLECULES = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",
    "O=C(O)c1cc(N=Nc2ccc(S(=O)(=O)Nc3ccccn3)cc2)ccc1O",
    "[Na+].[Cl-]",
    "F/C=C/F",
    "C",
)
MODELS = ("admet", "moleculenet-gcn")
PORT = 18099
SHOWN = 20
"""Packages listed by size."""
_SIZES = """
import json, pathlib, sysconfig
root = pathlib.Path(sysconfig.get_path("purelib"))
size = lambda path: sum(f.lstat().st_size for f in [path, *path.rglob("*")] if not f.is_dir())
rows = {path.name: size(path) for path in root.iterdir()}
rows["*.pyc of all"] = sum(f.stat().st_size for f in root.rglob("*.pyc"))
print(json.dumps(rows))
"""


def main() -> None:
    """Measure the images in turns, and write and print the results."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--after", required=True, help="the image")
    options.add_argument("--before", help="an older image, whose sizes and starts are measured too")
    options.add_argument("--rounds", type=int, default=5, help="starts of each image")
    arguments = options.parse_args()
    content: dict[str, Any] = {"machine": machine(1)}
    given = {"before": arguments.before, "after": arguments.after}
    images = {name: image for name, image in given.items() if image is not None}
    starts: dict[str, list[float]] = {name: [] for name in images}
    for _ in range(arguments.rounds):
        for name, image in images.items():
            with started(image) as (_, duration):
                starts[name].append(round(duration, 2))
    for name, image in images.items():
        times = {"median": median(starts[name]), "all": starts[name]}
        content[name] = {**sizes(image), "start_seconds": times}
    content["after"] |= compared(arguments.after)
    content["after"]["golden_tests"] = golden_tests(arguments.after)
    write_json(RESULTS / "image.json", content)
    print(json.dumps(content, indent=2), table(content["after"]), sep="\n")


def table(found: dict[str, Any]) -> str:
    """Return the sizes of an image as the table of `docs/image.md`."""
    rows = [
        ("the image without its base", found["megabytes_above_base"]),
        *((f"`{name}`", size) for name, size in found["packages_megabytes"].items() if size > 10),
    ]
    lines = [f"| {name} | {size:,.0f} |" for name, size in rows]
    return "\n".join(["| | MB |", "|---|---|", *lines])


def docker(*words: str) -> str:
    """Run a docker command and return what it prints. Raises CalledProcessError."""
    done = subprocess.run(["docker", *words], check=True, capture_output=True, text=True)
    return done.stdout


@contextmanager
def started(image: str, *given: str) -> Iterator[tuple[httpx.Client, float]]:
    """Run an image as Compose does, with further options of `docker run`; yield a client, and the
    seconds until it was ready."""
    start = time.monotonic()
    options = ["--read-only", "--tmpfs", "/tmp:size=2g", "--cap-drop", "ALL", *given]
    published = ["--publish", f"127.0.0.1:{PORT}:8000"]
    name = docker("run", "--detach", *options, *published, image).strip()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
            while not ready(client):
                if time.monotonic() - start > 120:
                    raise TimeoutError(docker("logs", name))
                time.sleep(0.05)
            yield client, time.monotonic() - start
    finally:
        docker("rm", "--force", name)


def ready(client: httpx.Client) -> bool:
    """Return whether the service says that it is ready."""
    with suppress(httpx.TransportError):
        return client.get("/readyz").status_code == 200
    return False


def models_folder(image: str) -> str:
    """Return the folder of the released models in an image."""
    program = "import models, pathlib; print(pathlib.Path(models.__file__).parent / 'releases')"
    return docker("run", "--rm", "--entrypoint", "python", image, "-c", program).strip()


def sizes(image: str) -> dict[str, Any]:
    """Return the megabytes of an image: all, its layers above the base, its largest packages."""
    total = int(docker("image", "inspect", "--format", "{{.Size}}", image))
    history = docker("history", "--no-trunc", "--human=false", "--format", "json", image)
    layers = [json.loads(line) for line in history.splitlines()]
    ours = sum(int(layer["Size"]) for layer in layers if layer["CreatedBy"].startswith("COPY"))
    rows = json.loads(docker("run", "--rm", "--entrypoint", "python", image, "-c", _SIZES))
    largest = sorted(rows.items(), key=lambda row: -row[1])[:SHOWN]
    return {
        "megabytes": round(total / 1e6),
        "megabytes_above_base": round(ours / 1e6),
        "packages_megabytes": {name: round(size / 1e6, 1) for name, size in largest},
    }


def compared(image: str) -> dict[str, float]:
    """Return the largest difference between the container's answers and this environment's."""
    with started(image, "--env", f"GMERGING_MODELS={models_folder(image)}") as (client, _):
        differences = [
            float(np.abs(answers_of(client, model) - expected_of(model)).max()) for model in MODELS
        ]
    return {"largest_difference_of_answers": max(differences)}


def answers_of(client: httpx.Client, model: str) -> np.ndarray[Any, Any]:
    """Ask the container for every task: (molecules, labels of all tasks)."""
    body = {"smiles": list(MOLECULES), "model": model}
    answer = client.post("/predict", json=body).raise_for_status().json()
    return np.array(
        [
            [value for labels in item["tasks"].values() for value in labels.values()]
            for item in answer["predictions"]
        ]
    )


def expected_of(model: str) -> np.ndarray[Any, Any]:
    """Compute the same numbers here."""
    settings = Settings.model_construct()
    engine = load_engine(released()[model], settings)
    limits = MoleculeLimits(settings.max_atoms, settings.max_smiles_length)
    parsed = read_all(MOLECULES, limits, engine.info.requirements)
    graphs = [molecule.graph for molecule in parsed if isinstance(molecule, Parsed)]
    answers = engine.run(graphs, engine.info.tasks, "own").answers
    return np.array(
        [np.concatenate([task.values for task in answer.values()]) for answer in answers]
    )


def golden_tests(image: str) -> str:
    """Run the tests of the golden artifacts in a container; return pytest's last line. Raises
    CalledProcessError if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        target = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "pytest"]
        subprocess.run(target, check=True, stderr=subprocess.DEVNULL)
        Path(folder).chmod(0o755)
        mounts = [f"{Path('tests').absolute()}:/check/tests:ro", f"{folder}:/pytest:ro"]
        words: Sequence[str] = (
            *("run", "--rm", "--entrypoint", "python"),
            *(word for mount in mounts for word in ("--volume", mount)),
            *("--env", "PYTHONPATH=/check:/pytest", "--env", "PYTHONDONTWRITEBYTECODE=1"),
            *(image, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "golden"),
            "/check/tests/models/test_artifact.py",
        )
        return docker(*words).strip().splitlines()[-1]


if __name__ == "__main__":
    main()
