"""Pages of documentation about the labels of released artifacts, made from their manifests:
`python -m merging.release.label_pages docs/labels models/releases/*`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from merging.studies.markdown import markdown_table
from models.artifact import read_manifest
from models.manifest import Manifest
from models.meaning import LabelMeaning, TaskMeaning, calibration_text, data_text, scores_text
from models.task import TaskInfo

_HEAD = (
    "label",
    "what it is",
    "high is",
    "data",
    "test score (95 % interval)",
    "calibration error",
)
_ANSWERED = {"own": "the network", "forest": "the forest", "both": "network and forest together"}


def label_page(manifest: Manifest) -> str:
    """Write the page of an artifact: a section per task, with a row per label."""
    labels = sum(len(info.labels) for info in manifest.tasks.values())
    sections = "\n\n".join(_section(task, info) for task, info in manifest.tasks.items())
    return f"""\
# Labels of {manifest.name} {manifest.version}

<!-- Made by `make labels` from the artifact; do not edit. -->

What each of the {labels} labels of the released model `{manifest.name}` means, and how well it is
predicted.

- *High is*: whether a high answer is good or bad for a substance that is to be used; bad is also a
  warning of a possible hazard. Neither: it depends on the use.
- *Data*: how many rows have the label, in the training, validation and test subsets, and the share
  of them that is 1, or how the numbers are distributed.
- *Test score*: of the answers that the model gives by default, on the test subset. In brackets the
  95 % interval of a percentile bootstrap over test rows, 1,000 draws. It says how much a score
  depends on which rows were tested, and not how much on the seed of the training.
- *Calibration error*: expected calibration error of the probability, 15 bins, on the test subset.
  With few test rows it is too large by chance.

{sections}
"""


def _section(task: str, info: TaskInfo) -> str:
    title = f"## {task}\n\n{info.description[:1].upper()}{info.description[1:]}."
    if info.meaning is None:
        return f"{title}\n\nNobody described the labels: {', '.join(info.labels)}."
    meaning = info.meaning
    rows = [
        _row(label, own, info, meaning)
        for label, own in zip(info.labels, meaning.labels, strict=True)
    ]
    facts = f"""\
- Source: {meaning.source}
- Terms: {meaning.terms}
- Answered by {_ANSWERED[meaning.answered_by]}"""
    return f"{title}\n\n{facts}\n\n{markdown_table(list(_HEAD), rows)}"


def _row(label: str, own: LabelMeaning, info: TaskInfo, meaning: TaskMeaning) -> list[str]:
    unit = info.unit(label)
    one = f" 1 = {own.one}." if own.one else f" Unit: {unit or 'not stated'}."
    what = f"**{own.name}**. {own.measured}{one}"
    data = data_text(own, meaning.counted, unit)
    return [f"`{label}`", what, own.direction, data, scores_text(own), calibration_text(own)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a page per artifact, named after it, into a folder."""
    parser = argparse.ArgumentParser(description="Write pages about the labels of artifacts.")
    parser.add_argument("folder", type=Path, help="folder of the pages")
    parser.add_argument("artifacts", type=Path, nargs="+", help="folders of artifacts")
    parsed = parser.parse_args(arguments)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    for artifact in parsed.artifacts:
        manifest, _ = read_manifest(artifact)
        (parsed.folder / f"{manifest.name}.md").write_text(label_page(manifest))


if __name__ == "__main__":
    main()
