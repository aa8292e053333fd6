"""Features of atoms and bonds as chemprop computes them, in its four modes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Mode = Literal["v1", "v2", "organic", "rigr"]
"""Chemprop's names of its atom featurisers."""
Reading = Literal["as_written", "canonical"]
"""Whether features are those of a text as it is written, as chemprop takes them, or of its
canonical SMILES: tags of chirality depend on the order in which a molecule is written."""
WIDTHS: dict[Mode, tuple[int, int]] = {
    "v1": (133, 14),
    "v2": (72, 14),
    "organic": (44, 14),
    "rigr": (52, 2),
}
"""Numbers of features of an atom and of a bond by mode."""


class FeaturizerOptions(BaseModel):
    """How molecules are read and featurised; travels in the artifact's manifest.

    Attributes:
        mode: see `Mode`.
        keep_h: whether hydrogen atoms that are written are kept.
        add_h: whether all hydrogen atoms are added.
        ignore_stereo: whether chirality and the stereo of bonds are removed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "v2"
    keep_h: bool = False
    add_h: bool = False
    ignore_stereo: bool = False
