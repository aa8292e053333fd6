"""`docs/adding-a-family.md`: its file and its row are all that a new kind of model takes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.pages import blocks, page

ROOT = Path(__file__).parents[3]
BLOCKS = [found.text for found in blocks(page("adding-a-family.md"), "python")]
SCRIPT = """
import asyncio, json, sys, torch
from pathlib import Path
import models
from models.artifact import save_artifact
from models.experts.router import RouterConfig
from models.families.counts import CountFamily, CountShape
from models.manifest import make_manifest
from models.task import TaskInfo
from service.core.artifact_engine import load_engine
from tests.service.doubles import serving, settings_of

async def main():
    family, shape, info = CountFamily(), CountShape(), TaskInfo(labels=("g",), target="regression")
    manifest = make_manifest("counts", "1", shape, 0, RouterConfig(), {"mass": info})
    network, head = family.network(shape), family.expert(shape, 0, info, manifest.input, "mass")
    torch.nn.init.constant_(network.weight, 1 / shape.hidden_dim)
    torch.nn.init.constant_(head.weight, 1.0)
    torch.nn.init.constant_(head.bias, 0.5)
    folder = Path(sys.argv[1]) / "artifact"
    save_artifact(folder, manifest, network, {"mass": head})
    engine = load_engine(folder, settings_of(device="cpu"))
    async with serving(engine) as client:
        answers = await client.post("/predict", json={"smiles": ["CCO", "C1CC"]})
        refused = await client.post("/predict", json={"smiles": "CCO", "routing": "moe"})
        described = await client.get("/v2/models/counts")
    print(json.dumps([models.__file__, answers.json(), refused.json(), described.json()]))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_page_shows_all_that_a_new_kind_takes(tmp_path: Path) -> None:
    """In a copy of `models` and `service`, which stands in front of ours."""
    file, row = BLOCKS
    for package in ("models", "service"):
        ignored = shutil.ignore_patterns("releases")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    (tmp_path / "models/families/counts.py").write_text(file)
    table = tmp_path / "models/families/table.py"
    text = table.read_text()
    (old,) = re.findall(r"ROWS: .*?\n\)\n", text, re.S)
    assert row.replace("    CountFamily(),\n", "") == old
    line = "from models.families.graphs import"
    added = f"from models.families.counts import CountFamily\n{line}"
    table.write_text(text.replace(old, row).replace(line, added))
    (tmp_path / "try_it.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / "try_it.py", tmp_path],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, answers, refused, described = json.loads(done.stdout.splitlines()[-1])
    assert Path(where).parent == tmp_path / "models"
    first, second = answers["predictions"]
    assert first["tasks"] == {"mass": {"g": 3.5}}  # three atoms and the bias
    assert second["error"]["code"] == "smiles_syntax"
    assert "a model that mixes no experts, expected 'own'" in refused["detail"]
    said = {"target": "regression", "label.0": "g"}
    mass = {"name": "mass", "datatype": "FP32", "shape": [-1, 1], "parameters": said}
    assert described["outputs"] == [mass]
