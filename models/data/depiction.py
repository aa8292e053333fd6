"""Pictures of molecules as SVG (RDKit), with atoms coloured by weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.data.smiles import read_smiles
from models.errors import GMergingError, InvalidInputError

LIBRARIES = "libxrender1 and libxext6"
"""Packages of Debian that RDKit's drawing needs and its wheel does not bring."""
Theme = Literal["light", "dark"]
UP, DOWN = (0.90, 0.38, 0.0), (0.0, 0.45, 0.70)
"""Vermilion and blue (Okabe and Ito 2008), which colour-blind people tell apart."""
_STRONGEST = 0.75
"""Opacity of the atom with the largest weight; letters stay legible on white and on black."""


class DrawingError(GMergingError):
    """The machine lacks libraries that RDKit draws with."""

    code = "drawing_unavailable"


@dataclass(frozen=True)
class DepictionStyle:
    """How molecules are drawn.

    Attributes:
        width, height: in pixels.
        theme: `dark` draws bright lines for a dark page. The background is transparent.
    """

    width: int = 180
    height: int = 130
    theme: Theme = "light"


def depict(
    smiles: str, style: DepictionStyle | None = None, weights: Sequence[float] | None = None
) -> str:
    """Draw a molecule.

    Args:
        smiles: a readable SMILES.
        style: None for the defaults.
        weights: a number for every heavy atom, in the order of `smiles`: positive ones get a disc
            of the colour `UP`, negative ones of `DOWN`, in proportion to the largest absolute
            value; zeros get none. None colours nothing.

    Returns:
        A document of type image/svg+xml.

    Raises:
        InvalidInputError: there are not as many weights as atoms.
        MoleculeError: the molecule cannot be read.
        DrawingError: RDKit cannot draw on this machine.
    """
    try:
        # Here, since a machine without these libraries can do all but draw.
        from rdkit.Chem.Draw import rdMolDraw2D
    except ImportError as error:
        expected = f"expected the system's libraries that RDKit draws with ({LIBRARIES} on Debian)"
        raise DrawingError(f"got no way to draw ({error}), {expected}") from error
    style = style or DepictionStyle()
    mol = read_smiles(smiles, strict=False)
    if weights is not None and len(weights) != mol.GetNumAtoms():
        got = f"weights: got {len(weights)} for {smiles}"
        raise InvalidInputError(f"{got}, expected {mol.GetNumAtoms()}, one per heavy atom")
    drawer = rdMolDraw2D.MolDraw2DSVG(style.width, style.height)
    options: Any = drawer.drawOptions()
    if style.theme == "dark":
        rdMolDraw2D.SetDarkMode(drawer)
    options.clearBackground = False  # after the theme, which would paint one
    colours = _colours(weights or ())
    rdMolDraw2D.PrepareAndDrawMolecule(
        drawer, mol, highlightAtoms=list(colours), highlightAtomColors=colours, highlightBonds=[]
    )
    drawer.FinishDrawing()
    return str(drawer.GetDrawingText()).replace("iso-8859-1", "utf-8", 1)


def _colours(weights: Sequence[float]) -> dict[int, tuple[float, float, float, float]]:
    """Return the colour of every atom that has one."""
    largest = max(map(abs, weights), default=0.0)
    return {
        k: (*(UP if weight > 0 else DOWN), _STRONGEST * abs(weight) / largest)
        for k, weight in enumerate(weights)
        if weight
    }
