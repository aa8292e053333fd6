"""Pictures of molecules."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from models.data.depiction import DOWN, UP, DepictionStyle, DrawingError, depict
from models.errors import InvalidInputError, MoleculeError
from service.core.drawing import Drawing, draw
from service.core.reading import ItemFailure, MoleculeLimits

ROOT = Path(__file__).parents[3]
SVG = "{http://www.w3.org/2000/svg}"


def discs(svg: str) -> dict[int, str]:
    """The fill of every coloured atom, #RRGGBBAA by its number."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}ellipse")
    fills = {}
    for disc in found:
        (atom,) = re.findall(r"atom-(\d+)", disc.attrib["class"])
        (fills[int(atom)],) = re.findall(r"fill:(#\w+)", disc.attrib["style"])
    return fills


def hexed(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{int(255 * value):02X}" for value in colour)


def test_a_picture_is_an_svg_of_the_size_that_was_asked_for() -> None:
    picture = ElementTree.fromstring(depict("CCO", DepictionStyle(300, 200)))
    assert picture.tag == f"{SVG}svg"
    assert (picture.attrib["width"], picture.attrib["height"]) == ("300px", "200px")
    assert not list(picture.iter(f"{SVG}rect"))  # no background


def test_a_dark_picture_has_other_lines_and_no_background() -> None:
    dark = depict("CCO", DepictionStyle(theme="dark"))
    assert dark != depict("CCO")
    assert not list(ElementTree.fromstring(dark).iter(f"{SVG}rect"))


def test_atoms_are_coloured_by_sign_and_size() -> None:
    fills = discs(depict("CCO", weights=[2.0, 0.0, -1.0]))
    assert fills.keys() == {0, 2}
    assert fills[0].startswith(hexed(UP))
    assert fills[2].startswith(hexed(DOWN))
    assert int(fills[0][-2:], 16) == pytest.approx(2 * int(fills[2][-2:], 16), abs=1)
    assert discs(depict("CCO")) == {}
    assert discs(depict("CCO", weights=[0, 0, 0])) == {}


def test_weights_are_one_per_heavy_atom() -> None:
    with pytest.raises(InvalidInputError, match="weights: got 2 for CCO, expected 3, one per"):
        depict("CCO", weights=[1, 2])


@pytest.mark.parametrize("smiles", ["[Na+].[Cl-]", "C", "[O-][n+]1ccccc1", "C/C=C\\[C@H](F)Cl"])
def test_odd_molecules_are_drawn(smiles: str) -> None:
    assert ElementTree.fromstring(depict(smiles)).tag == f"{SVG}svg"


def test_what_is_no_molecule_is_refused() -> None:
    with pytest.raises(MoleculeError):
        depict("C1CC")


def test_a_machine_without_the_libraries_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rdkit.Chem.Draw", None)
    with pytest.raises(DrawingError, match=r"got no way to draw .*libxrender1 and libxext6"):
        depict("CCO")
    drawn = draw(Drawing("CCO", DepictionStyle()), MoleculeLimits(500, 2000))
    assert isinstance(drawn, ItemFailure)
    assert drawn.code == "drawing_unavailable"


def test_reading_molecules_needs_none_of_them() -> None:
    code = """
import sys
sys.modules["rdkit.Chem.Draw"] = None
import gmerging.model, service.__main__, service.app
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
