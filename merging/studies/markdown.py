"""merging.studies.markdown"""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample; None of one value) with the single values."""
    return {
        "mean": round(fmean(values), 5),
        "std": standard_deviation(values),
        "values": [round(value, 5) for value in values],
    }


def standard_deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation, to five digits; None of a single value."""
    return round(stdev(values), 5) if len(values) > 1 else None


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Without a final newline; a bar or a line break in a cell stays in its cell."""
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    first, *others = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([first, "|---" * len(head) + "|", *others])


def percent(mean: float, std: float | None = None) -> str:
    """`71.9` or `71.9 ± 0.4`, from fractions."""
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"
