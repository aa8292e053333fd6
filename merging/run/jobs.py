"""Independent pieces of work, one after the other or in processes of their own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from tqdm import tqdm

Job = Callable[[], object]
"""Must be picklable (a partial of a module's function), and keeps its result in the work folder:
what it returns is not sent back."""


def run_jobs(description: str, jobs: Sequence[Job], processes: int, threads: int) -> None:
    """Do all of them; the first error of a job is raised here.

    Args:
        description: for the progress bar.
        jobs: in the order in which they start.
        processes: how many at a time; 1 does them in this process.
        threads: torch threads of each.
    """
    bar = partial(tqdm, total=len(jobs), desc=description, unit="piece")
    if processes == 1 or len(jobs) < 2:
        for job in bar(jobs):
            job()
        return
    # Fresh processes: a forked one would inherit torch's thread pool in an unknown state.
    context, limit = get_context("spawn"), partial(torch.set_num_threads, threads)
    with ProcessPoolExecutor(
        min(processes, len(jobs)), mp_context=context, initializer=limit
    ) as pool:
        for _ in bar(pool.map(_quietly, jobs)):
            pass


def _quietly(job: Job) -> None:
    job()
