"""A small model that has all that the page can show of one, and helpers for tests of the page."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import pytest

from models.artifact import load_components, save_artifact
from models.drugs import DrugInfo, DrugTable
from models.meaning import Counts, LabelMeaning, LabelScore, TaskMeaning
from tests.service.doubles import save_pico_domains

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

HOSTILE = "<img src=x onerror=alert(1)>"
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
CARD = f"""# pico 0.1.0

A *small* model with `code`, a [link](https://example.org/a) and {HOSTILE}.
[Not a link](javascript:alert(2))

| task | score |
|---|---|
| `clintox` | {HOSTILE} \\| 0.9 |

- first
  goes on
- second

```
<script>alert(3)</script>
```
"""
_SHOWN = ("clintox.CT_TOX", "tox21.NR-AR", "bbbp.p_np")


def save_described(folder: Path) -> Path:
    """Save `save_pico_domains` with meanings, a table of drugs and a card; names hold HTML."""
    with TemporaryDirectory() as plain:
        components = load_components(save_pico_domains(Path(plain) / "plain"))
    manifest = components.manifest
    infos = {
        task: info.model_copy(update={"meaning": _meaning(info.labels)})
        for task, info in manifest.tasks.items()
    }
    even = np.linspace(0, 1, 101)
    answers = {task: np.stack([even] * len(info.labels), axis=1) for task, info in infos.items()}
    default = {task: manifest.forests[task].default for task in manifest.forests}
    drugs = DrugInfo(
        molecules=101,
        source="a list",
        date="2026-01-01",
        terms="free",
        sha256="0" * 64,
        in_training=3,
        in_training_by_task=dict.fromkeys(infos, 1),
        experts={task: default.get(task, "own") for task in infos},
    )
    manifest = manifest.model_copy(update={"tasks": infos, "drugs": drugs})
    written = components.backbone, components.experts, CARD
    optional = {"forests": components.forests, "domains": components.domains}
    save_artifact(folder, manifest, *written, **optional, drugs=DrugTable.of(answers))
    return folder


def _meaning(labels: tuple[str, ...]) -> TaskMeaning:
    described = tuple(
        LabelMeaning(
            name=f"{HOSTILE} {name}",
            measured=f"Whether {name} was found.",
            direction="bad",
            one=f"has {name}",
            counts=Counts(train=1400, valid=101, test=99),
            positives=Counts(train=400, valid=50, test=30),
            scores=(LabelScore(metric="roc_auc", value=0.91, low=0.85, high=0.96),),
            calibration_error=0.043,
        )
        for name in labels
    )
    return TaskMeaning(source="a paper", terms="CC0", counted="molecules", labels=described)


def table_address(url: str, text: str = f"{ASPIRIN} aspirin") -> str:
    """Return the address at which the page predicts molecules."""
    fields = [("molecules", text), *(("labels", column) for column in _SHOWN)]
    return f"{url}/#{urlencode(fields)}"


def open_panel(page: "Page", url: str, text: str = f"{ASPIRIN} aspirin") -> None:
    """Predict a molecule, and open its panel by keyboard from its row."""
    page.goto(table_address(url, text))
    page.locator("#molecules tbody .value").first.wait_for()
    page.locator("#molecules tbody tr:not(.spacer) [tabindex]").first.focus()
    page.keyboard.press("Enter")
    page.locator("#panel .values").wait_for()


def until_changed(image: "Locator", before: str | None) -> str:
    """Wait until an image shows another picture, and return its address. The policy of the page
    forbids playwright's own way, which is `eval`."""
    for _ in range(100):
        address = image.get_attribute("src")
        if address and address != before:
            return address
        image.page.wait_for_timeout(50)
    raise AssertionError("the picture stays the same")


def accessibility_complaints(page: "Page", selector: str) -> list[str]:
    """Return what axe-core finds wrong with the element that a selector finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found: list[dict[str, Any]] = axe.run(page, context=selector).response["violations"]
    return [f"{one['id']}: {[node['html'][:120] for node in one['nodes'][:3]]}" for one in found]
