"""Predictions as SDF, read again by RDKit."""

from io import BytesIO
from typing import Any

import numpy as np
from rdkit import Chem

from models.data.layout import mol_block
from service.core.answer import Answer, Result
from service.core.engine import TaskAnswer
from service.core.explaining import Explained
from service.core.reading import ItemFailure
from service.formats.molecule_files import FileFormat, FileKind, open_file
from service.formats.sdf_writer import SdfWriter
from tests.service.doubles import DummyEngine

LATE = ItemFailure("parse_timeout", "took more than 5 s")
BROKEN = ItemFailure("smiles_syntax", "got C1, which is not valid")
OWN = Chem.MolToMolBlock(Chem.MolFromSmiles("OCC")).replace("\n", "mine\n", 1)


def answer(smiles: str, block: str | ItemFailure | None = None, **shown: Any) -> Answer:
    values = np.array([0.25], np.float32)
    tasks = {"bbbp": TaskAnswer(values, np.zeros((2, 3), np.float32))}
    return Answer(smiles, tasks, None, shown, block)


def written(kind: FileKind, content: str, results: list[Result], **options: Any) -> list[Any]:
    """The records as RDKit reads them, and the text of each."""
    file = open_file(
        BytesIO(content.encode()), FileFormat(kind, None, options.pop("id_field", None))
    )
    writer = SdfWriter(file, DummyEngine().info, ("bbbp",), **options)
    text = writer.rows(list(zip(file.records, results, strict=True))).decode()
    assert writer.header() == b""
    assert writer.answered == len(results)
    assert writer.failed == sum(isinstance(result, ItemFailure) for result in results)
    return list(Chem.ForwardSDMolSupplier(BytesIO(text.encode()), sanitize=False))


def test_a_table_becomes_molecules_with_coordinates() -> None:
    content = "id,smiles,a<b>\nx7,OCC,1\ny8,C1,\nz9,C,\n"
    results: list[Result] = [answer("CCO", mol_block("CCO")), BROKEN, answer("C", LATE)]
    first, broken, late = written("csv", content, results, id_field="id")
    assert first.GetProp("_Name") == "x7"
    assert Chem.MolToSmiles(first) == "CCO"
    assert first.GetNumConformers() == 1
    assert first.GetPropsAsDict() == {
        "id": "x7",
        "smiles": "OCC",
        "a_b_": 1,
        "gmerging_smiles": "CCO",
        "bbbp.p_np": 0.25,
    }
    assert (broken.GetNumAtoms(), broken.GetProp("_Name")) == (0, "y8")
    assert broken.GetPropsAsDict() == {
        "id": "y8",
        "smiles": "C1",
        "gmerging_error": "smiles_syntax: got C1, which is not valid",
    }
    assert late.GetNumAtoms() == 0
    assert late.GetProp("gmerging_error") == "parse_timeout: took more than 5 s"
    assert late.GetProp("bbbp.p_np") == "0.25"


def test_an_sdf_keeps_its_blocks_and_fields() -> None:
    content = (
        f"{OWN}>  <note>\nkept\nas it is\n\n$$$$\nlast\n\n\nnothing V2000\n>  <note>\n\n$$$$\n"
    )
    first, last = written("sdf", content, [answer("CCO"), BROKEN])
    assert first.GetProp("_Name") == "mine"
    assert [atom.GetSymbol() for atom in first.GetAtoms()] == ["O", "C", "C"]
    assert first.GetProp("note") == "kept\nas it is"
    assert first.GetProp("bbbp.p_np") == "0.25"
    assert last is None or last.GetNumAtoms() == 0, "it is no molecule, and keeps its place"


def test_hostile_cells_end_no_record() -> None:
    cell = "a\n\n$$$$\n>  <gmerging_error>\nb"
    content = f'smiles,note\nC,"{cell}"\nCC,x\n'
    results: list[Result] = [answer("C", mol_block("C")), answer("CC", mol_block("CC"))]
    first, second = written("csv", content, results)
    assert first.GetProp("note").split("\n") == ["a", " $$$$", " >  <gmerging_error>", "b"]
    assert not first.HasProp("gmerging_error")
    assert Chem.MolToSmiles(second) == "CC"


def test_explanations_are_fields() -> None:
    asked = Explained(("drugs", "alerts"), {"bbbp": ("p_np",)})
    alerts = [{"catalog": "BRENK", "name": "nitro_group", "atoms": [0]}]
    shown = {"drugs": {"bbbp": {"p_np": 12.5}}, "alerts": alerts}
    (mol,) = written("smi", "C methane\n", [answer("C", mol_block("C"), **shown)], explained=asked)
    assert mol.GetProp("bbbp.p_np percentile among drugs") == "12.5"
    assert mol.GetProp("gmerging_alerts") == "nitro_group"
