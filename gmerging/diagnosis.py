"""What a maintainer would ask about an installation, and checks of it."""

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from models.errors import GMergingError
from models.released import DEFAULT_RELEASE, released

DISTRIBUTION = "g-merging"
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR")
_INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
_HIDDEN = "set (not shown)"


@dataclass(frozen=True)
class Finding:
    """One fact about the installation.

    Attributes:
        section: heading under which it is shown.
        name: what it is about.
        value: what was found.
        problem: what is wrong and what was expected; empty if nothing is.
    """

    section: str
    name: str
    value: str
    problem: str = ""


Found = Iterator[tuple[str, str, str]]
"""Name, value and problem of findings."""


def examine() -> list[Finding]:
    """Run all checks. A check that fails for a reason of its own is a problem, and hinders no
    other."""
    findings = []
    for section, check in CHECKS.items():
        try:
            findings += [Finding(section, *found) for found in check()]
        # Broken installations raise anything: an ImportError of a shared library, an OSError, ...
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            findings.append(Finding(section, "check", "failed", problem))
    return findings


def system() -> Found:
    """Python, operating system and processor."""
    yield "python", f"{platform.python_version()}, {sys.executable}", _python_problem()
    yield "system", platform.platform(), ""
    yield "processor", f"{_processor_name()}, {_instructions()}", ""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = cgroup_cpus()
    limit = "" if quota is None else f", {quota:g} by the container's limit"
    yield "cores", f"{cores}, {usable} for this process{limit}", ""


def packages() -> Found:
    """Versions of the packages that every installation needs, and of those of extras that are out
    of range; which extras are complete."""
    distribution = importlib.metadata.distribution(DISTRIBUTION)
    yield DISTRIBUTION, f"{distribution.version}, {Path(__file__).parents[1]}", ""
    requirements = [Requirement(text) for text in distribution.requires or ()]
    for requirement in requirements:
        version, of_base = _version_of(requirement.name), _asks(requirement, "")
        if of_base or (version is not None and not _is_met(requirement)):
            wanted = f"expected {requirement.name}{requirement.specifier}"
            problem = "" if _is_met(requirement) else wanted
            yield requirement.name, version or "not installed", problem
    extras = distribution.metadata.get_all("Provides-Extra") or []
    complete = [extra for extra in extras if is_complete(requirements, extra)]
    yield "complete extras", ", ".join(complete) or "none", ""


def is_complete(requirements: Sequence[Requirement], extra: str) -> bool:
    """Return whether everything that an extra asks for is installed, in the right versions."""
    asked = [r for r in requirements if _asks(r, extra) and not _asks(r, "")]
    return all(
        _is_met(r) and all(is_complete(requirements, inner) for inner in r.extras) for r in asked
    )


def _asks(requirement: Requirement, extra: str) -> bool:
    """Return whether a requirement holds on this machine, with an extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_met(requirement: Requirement) -> bool:
    version = _version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def threads() -> Found:
    """Threads of torch, and the variables that set them."""
    import torch

    yield "torch", f"{torch.get_num_threads()}, {torch.get_num_interop_threads()} inter-op", ""
    for name in _THREAD_VARIABLES:
        yield name, os.environ.get(name, "not set"), ""


def memory() -> Found:
    """Memory of the machine, and the limit of a container."""
    facts = _meminfo()
    total, free = (_gigabytes(facts.get(name)) for name in ("MemTotal", "MemAvailable"))
    yield "machine", f"{total}, {free} available", ""
    yield "container's limit", _gigabytes(cgroup_bytes()) if cgroup_bytes() else "none", ""


def gpu() -> Found:
    """GPUs that torch sees."""
    import torch

    yield "torch built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU", ""
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    yield "devices", ", ".join(names) or "none", ""


def kernels() -> Found:
    """Folder where compiled kernels are kept."""
    from models.compiled.kernels import aggregate

    folder = aggregate.stats.cache_path  # type: ignore[attr-defined]  # of numba's dispatcher
    problem = "expected a folder that can be written, see NUMBA_CACHE_DIR: each process compiles"
    yield "numba cache", folder or "none", "" if folder else problem


def settings() -> Found:
    """Variables GMERGING_* that are set. Values of keys, and of names that are no settings, which
    may be misspelt names of keys, are not shown."""
    from service.settings import OTHER_VARIABLES, PREFIX, load_settings, variable_names

    given = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
    shown = {*variable_names(), *OTHER_VARIABLES} - {f"{PREFIX}API_KEYS"}
    for name, value in sorted(given.items()):
        yield name, value if name.upper() in shown else _HIDDEN, ""
    try:
        load_settings()
    except GMergingError as error:
        yield "settings", "invalid", str(error)
    else:
        yield "settings", "valid" if given else "none set", ""


def data() -> Found:
    """Folder of training data, which only commands that train need."""
    given = os.environ.get("GMERGING_DATA")
    folder = _data_folder()
    there = folder.is_dir()
    problem = f"expected GMERGING_DATA to name a folder, got {given}" if given and not there else ""
    about = "present" if there else "not there; commands that train take --data"
    yield str(folder), about, problem


def weights() -> Found:
    """Pre-trained weights that only commands that train need: those that come with the package by
    their hash, published ones on disk against theirs."""
    try:
        from merging.data.checkpoints import BUNDLED, origin, published_files
    except ModuleNotFoundError as error:
        yield "not looked at", f"got no package {error.name}: without the extra `merging`", ""
        return
    for name, file in BUNDLED.items():
        yield name, origin(name, file), ""
    for file, intact in published_files(_data_folder()).items():
        problem = "expected the published file's digest; delete it, to have it downloaded again"
        yield file.stem, str(file), "" if intact else problem


def _data_folder() -> Path:
    return Path(os.environ.get("GMERGING_DATA") or "../shared/data")


def releases() -> Found:
    """Artifacts that come with the package: every file against its hash."""
    from models.artifact import load_components

    found = released()
    if DEFAULT_RELEASE not in found:
        yield DEFAULT_RELEASE, "missing", "expected the default release in the package"
    for name, folder in found.items():
        try:
            components = load_components(folder)
        except (GMergingError, OSError) as error:
            yield name, "damaged", str(error)
            continue
        manifest, files = components.manifest, len(components.manifest.files)
        about = f"{manifest.version}, {len(manifest.tasks)} tasks, sha256 {components.digest[:12]}"
        yield name, f"{about}, {files} files verified", ""


def trial() -> Found:
    """A prediction of every task of the default release for one molecule, with its time."""
    from service.core.artifact_engine import load_engine
    from service.core.reading import MoleculeLimits, Parsed, read
    from service.settings import Settings

    defaults = Settings.model_construct()  # whatever the environment says
    limits = MoleculeLimits(defaults.max_atoms, defaults.max_smiles_length)
    start = time.perf_counter()
    engine = load_engine(released()[DEFAULT_RELEASE], defaults)
    loaded = time.perf_counter()
    parsed = read(ASPIRIN, limits, engine.info.requirements)
    assert isinstance(parsed, Parsed)
    engine.run([parsed.graph], engine.info.tasks, "own")
    seconds = time.perf_counter() - loaded
    yield "load", f"{loaded - start:.1f} s, on {engine.info.device}", ""
    yield "predict aspirin", f"{1e3 * seconds:.0f} ms, {len(engine.info.tasks)} tasks", ""


CHECKS: dict[str, Callable[[], Found]] = {
    "system": system,
    "packages": packages,
    "threads": threads,
    "memory": memory,
    "GPU": gpu,
    "kernels": kernels,
    "settings": settings,
    "training data": data,
    "weights": weights,
    "releases": releases,
    "trial": trial,
}
"""All checks, by section."""


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the number of cores that the control group may use; None without a limit."""
    quota, _, period = _first_line(root / "cpu.max").partition(" ")
    if not period:  # version 1
        quota = _first_line(root / "cpu/cpu.cfs_quota_us")
        period = _first_line(root / "cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def cgroup_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory that the control group may use; None without a limit."""
    limit = _first_line(root / "memory.max") or _first_line(root / "memory/memory.limit_in_bytes")
    # Version 1 says "no limit" by a number near 2^63.
    return int(limit) if limit.isdigit() and int(limit) < 2**60 else None


def _python_problem() -> str:
    wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    fits = Requirement(f"python{wanted}").specifier.contains(platform.python_version(), True)
    return "" if fits else f"expected {wanted}"


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor_name() -> str:
    lines = _lines(Path("/proc/cpuinfo"))
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _instructions() -> str:
    """Return the vector instructions that decide the speed of kernels and products."""
    flags = next((x.split() for x in _lines(Path("/proc/cpuinfo")) if x.startswith("flags")), [])
    if known := [name for name in _INSTRUCTIONS if name in flags]:
        return " ".join(known)
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def _meminfo() -> dict[str, int]:
    """Return the numbers of /proc/meminfo in bytes; empty where there is none."""
    pairs = (line.partition(":") for line in _lines(Path("/proc/meminfo")))
    return {
        name: 1024 * int(rest.split()[0]) for name, _, rest in pairs if rest.split()[1:] == ["kB"]
    }


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "")
