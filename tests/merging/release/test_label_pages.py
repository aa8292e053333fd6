"""The pages about labels are those of the released models."""

from pathlib import Path

import pytest

import models
from merging.release.label_pages import label_page, main
from models.artifact import read_manifest
from models.meaning import METRIC_TITLES

ROOT = Path(__file__).parents[3]
RELEASES = sorted((Path(models.__file__).parent / "releases").iterdir())


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_pages_are_up_to_date(release: Path, tmp_path: Path) -> None:
    main([str(tmp_path / "pages"), str(release)])
    (page,) = (tmp_path / "pages").iterdir()
    kept = ROOT / "docs/labels" / f"{release.name}.md"
    assert page.name == kept.name
    assert page.read_text() == kept.read_text(), "`make labels` writes it again"


def test_there_is_a_page_for_every_release_and_no_other() -> None:
    pages = {path.stem for path in (ROOT / "docs/labels").glob("*.md")}
    assert pages == {release.name for release in RELEASES}


def test_a_task_that_nobody_described_says_so() -> None:
    manifest, _ = read_manifest(RELEASES[0])
    info = next(iter(manifest.tasks.values())).model_copy(update={"meaning": None})
    page = label_page(manifest.model_copy(update={"tasks": {"plain": info}}))
    assert f"Nobody described the labels: {', '.join(info.labels)}." in page
    assert not any(title in page for title in METRIC_TITLES.values())
