"""The applicability domains of the released models are those of the data, and hold back what may
not be shown."""

from pathlib import Path

import numpy as np
import pytest

import models
from merging.data.molecule_dataset import MOLECULENET, load_dataset, load_molecules
from merging.run.domains import similarity_fingerprints
from models.artifact import load_artifact, read_manifest

RELEASES = Path(models.__file__).parent / "releases"
NOT_SHOWN = {"sider", "clintox", "bbbp", "bace"}
MOST_BYTES = 12_000_000


@pytest.mark.parametrize("release", ["admet", "moleculenet-gcn"])
def test_every_task_has_a_domain_and_siders_is_never_shown(release: str) -> None:
    manifest, digest = read_manifest(RELEASES / release)
    assert manifest.domains.keys() == manifest.tasks.keys()
    hidden = {task for task, info in manifest.domains.items() if not info.may_show}
    assert hidden == NOT_SHOWN & manifest.tasks.keys()
    assert manifest.weights_digest(digest) == manifest.provenance["meanings"]["weights_of"]
    sizes = [path.stat().st_size for path in (RELEASES / release / "domain").iterdir()]
    assert sum(sizes) < MOST_BYTES


def test_similarity_orders_the_error_of_bbbp_and_not_of_bace() -> None:
    domains = load_artifact(RELEASES / "moleculenet-gcn", tasks=["bbbp", "bace"]).domains
    (bbbp,), (bace,) = domains["bbbp"].labels, domains["bace"].labels
    scores = [band.score for band in bbbp.bands]
    assert scores == sorted(scores)
    assert bbbp.bands[0].error > bbbp.bands[0].error_of_base
    assert bace.bands[0].score == max(band.score for band in bace.bands)
    assert bbbp.conformal is not None
    assert not bbbp.conformal.holds
    assert bace.conformal is None


def test_molecules_are_those_of_the_table(shared: Path, tmp_path: Path) -> None:
    data = load_dataset("bace", MOLECULENET["bace"], shared / "data", tmp_path)
    smiles = load_molecules(data, MOLECULENET["bace"], shared / "data", tmp_path)
    lines, train = list(smiles), data.split.train.tolist()
    known = load_artifact(RELEASES / "moleculenet-gcn", tasks=["bace"]).domains["bace"].molecules
    assert sorted(known.rows.tolist()) == sorted(lines[k] for k in train)
    some = known.rows[::40].tolist()
    prints = similarity_fingerprints([smiles[line] for line in some], 1, "bace")
    assert np.array_equal(known.fingerprints[::40], prints)
