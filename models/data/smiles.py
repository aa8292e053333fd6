"""Molecules from text to graphs in the vocabulary of Hu et al. 2020 ("Strategies for Pre-training
Graph Neural Networks").

At the edges of the vocabulary:

- Salts and mixtures stay whole: all components belong to one graph, as in the training sets; the
  mean readout weighs them by atoms.
- Atom features: atomic number - 1 (118 elements); chirality tags other than CW and CCW count as
  unspecified.
- A dummy atom (`*`) is an error in strict mode and the mask row (119) in tolerant mode.
- Bond types: single, double, triple, aromatic; dative bonds count as single. Any other type is an
  error in strict mode and single in tolerant mode.
- Bond directions: none, up-right, down-right; any other counts as none.
- A single atom or a graph without bonds is valid.

Chirality tags and bond directions depend on the atom order of the SMILES. Features are therefore
taken from one SMILES per molecule, and neither its content nor its order depends on anything that
the network does not see (`READING_RULE`):

1. Atom-map numbers and isotopes are cleared. Hydrogen atoms are removed, also those with an isotope
   or a stereo bond; a molecule of hydrogen alone keeps one atom for each H2, H+ or H-. Stereo that
   only these made, or the proton of an ammonium ion, is dropped.
2. The canonical SMILES of the result is the one that is shown.
3. If it contains a tag or a direction, atoms are ranked on a copy without charges, radicals and
   hydrogen counts, whose dative bonds are single. Written in that order and read again, the
   molecule has its features.

Texts other than SMILES (`models.data.molecule_text`) are converted to SMILES first.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np
from rdkit import Chem, rdBase

from models.data.fingerprint import with_fingerprint
from models.data.molecule import MolGraph
from models.data.molecule_features import Drawing, build_graphs
from models.data.molecule_text import plain_smiles
from models.data.smiles_parser import ATOM, ParsedSmiles, parse_smiles, parse_text
from models.errors import MoleculeError

READING_RULE = 2
"""Version of the rule by which a molecule becomes a graph; an artifact's manifest states its rule.

1: features of RDKit's canonical SMILES, whose order also depends on atom-map numbers, isotopes,
charges and hydrogen counts; hydrogen atoms that RDKit's reader keeps (isotopes, stereo) are atoms
of the graph.
2: as in the module's docstring. Molecules without atom maps, isotopes and kept hydrogens have other
features than by rule 1 only where a tag or a direction stands beside a charge, a radical or an
aromatic NH, and rarely there.
"""
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Molecule:
    """A molecule that was read.

    Attributes:
        smiles: canonical SMILES (RDKit) of the molecule, with charges, without atom maps, isotopes
            and hydrogen atoms.
        graph: its graph, a function of `smiles`.
    """

    smiles: str
    graph: MolGraph

    @property
    def key(self) -> str:
        """`smiles`, which decides the graph."""
        return self.smiles


def featurize(smiles: str, *, strict: bool = True, max_atoms: int | None = None) -> Molecule:
    """Read a molecule: its canonical SMILES and its graph.

    Args:
        smiles: a SMILES or another text that `models.data.molecule_text` reads; surrounding white
            space is ignored.
        strict: False reads what MoleculeNet contains: valences are not checked, dummy atoms and
            unusual bonds are mapped (see the module's docstring).
        max_atoms: most heavy atoms; None for no limit.

    Raises:
        MoleculeError: with code `empty_smiles`, `smiles_syntax`, `chemistry`, `too_many_atoms`,
            `dummy_atom` or `bond_type`, or one of `models.data.molecule_text.plain_smiles`.
    """
    return _only(featurize_all([smiles], strict=strict, max_atoms=max_atoms))


def featurize_all(
    smiles: Sequence[str],
    *,
    strict: bool = True,
    max_atoms: int | None = None,
    fingerprints: bool = False,
) -> list[Molecule | MoleculeError]:
    """Read many molecules as `featurize` does; errors are returned in place, not raised. With
    `fingerprints`, graphs are `models.data.fingerprint.FingerprintedMolGraph`."""
    return [
        read if isinstance(read, MoleculeError) else Molecule(*read)
        for read in _read_all(smiles, strict, max_atoms, canonical_drawing, fingerprints)
    ]


def read_graph(smiles: str, *, strict: bool = True, max_atoms: int | None = None) -> MolGraph:
    """Read only the graph of a molecule, a third faster than `featurize`.

    The graph is that of `featurize` up to the order of its atoms, and so are the errors. Most
    molecules need no canonical SMILES for it.
    """
    return _only(read_graphs([smiles], strict=strict, max_atoms=max_atoms))


def read_graphs(
    smiles: Sequence[str], *, strict: bool = True, max_atoms: int | None = None
) -> list[MolGraph | MoleculeError]:
    """Read many graphs as `read_graph` does; errors are returned in place, not raised."""
    return [
        read if isinstance(read, MoleculeError) else read[1]
        for read in _read_all(smiles, strict, max_atoms, _canonical_if_needed)
    ]


def _only(found: Sequence[T | MoleculeError]) -> T:
    (result,) = found
    if isinstance(result, MoleculeError):
        raise result
    return result


# Every step runs over a group of molecules before the next one: the code of one step and the
# group's molecules stay in the processor's caches, and NumPy is called once for all of them.
_GROUP = 32


def _read_all(
    texts: Sequence[str],
    strict: bool,
    max_atoms: int | None,
    draw: Callable[[ParsedSmiles, bool], Drawing],
    fingerprints: bool = False,
) -> list[tuple[str, MolGraph] | MoleculeError]:
    """Read molecules: their canonical SMILES and graphs, or errors."""
    results: list[tuple[str, MolGraph] | MoleculeError] = []
    with rdBase.BlockLogs():
        for begin in range(0, len(texts), _GROUP):
            group = texts[begin : begin + _GROUP]
            results += _read_group(group, strict, max_atoms, draw, fingerprints)
    return results


def _read_group(
    texts: Sequence[str],
    strict: bool,
    max_atoms: int | None,
    draw: Callable[[ParsedSmiles, bool], Drawing],
    fingerprints: bool = False,
) -> list[tuple[str, MolGraph] | MoleculeError]:
    parsed = [error_as_value(parse_text, text, strict, max_atoms) for text in texts]
    drawings = [
        result if isinstance(result, MoleculeError) else error_as_value(draw, result, strict)
        for result in parsed
    ]
    drawn = [drawing for drawing in drawings if not isinstance(drawing, MoleculeError)]
    graphs = iter(build_graphs(drawn, strict))
    results: list[tuple[str, MolGraph] | MoleculeError] = []
    for drawing in drawings:
        if isinstance(drawing, MoleculeError):
            results.append(drawing)
            continue
        graph = next(graphs)
        if isinstance(graph, MoleculeError):
            results.append(graph)
            continue
        if fingerprints:
            graph = with_fingerprint(graph, drawing.parsed.mol, drawing.canonical)
        results.append((drawing.canonical, graph))
    return results


def error_as_value(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | MoleculeError:
    """Call a step and return its MoleculeError in place of raising it."""
    try:
        return step(*args, **kwargs)
    except MoleculeError as error:
        return error


_ORDER_MATTERS = ("@", "/", "\\", "[H]", "[IH", "->", "<-")
"""Marks of a canonical SMILES that may change when it is read again: features, or the canonical
SMILES itself (hydrogens kept for stereo that is none, O=[IH])."""
_ALL_VISIBLE = re.compile(r"(?:[^\[]|\[C@@?H?\])*+")
"""A canonical SMILES whose atom order depends only on what the network sees: the hydrogen counts of
its atoms follow from bonds and elements."""


def _canonical_if_needed(parsed: ParsedSmiles, strict: bool) -> Drawing:
    """Do as `canonical_drawing`, but leave out the canonical SMILES of a plain molecule."""
    return Drawing(parsed, "") if parsed.is_plain else canonical_drawing(parsed, strict)


def canonical_drawing(parsed: ParsedSmiles, strict: bool) -> Drawing:
    """Choose the molecule to take features from, and write its canonical SMILES.

    RDKit's canonical SMILES is not always that of the molecule read from it. Reading and writing is
    then repeated until the text stays the same; of several that alternate the alphabetically first
    is taken, so that all of them give one result.
    """
    smiles = _write(parsed)
    if not any(mark in smiles for mark in _ORDER_MATTERS):
        return Drawing(parsed, smiles)
    read = partial(parse_smiles, strict=strict)
    parsed = fixed_point(parsed, smiles, read, _write)
    smiles = parsed.text
    if _ALL_VISIBLE.fullmatch(smiles):
        return Drawing(parsed, smiles)
    ordered = _write_in_visible_order(parsed)
    return Drawing(fixed_point(parsed, ordered, read, _write_in_visible_order), smiles)


def _write(parsed: ParsedSmiles) -> str:
    return str(Chem.MolToSmiles(parsed.mol))


def fixed_point(
    parsed: ParsedSmiles,
    smiles: str,
    read: Callable[[str], ParsedSmiles],
    write: Callable[[ParsedSmiles], str],
) -> ParsedSmiles:
    """Read and write a SMILES until `write` returns it again; return its molecule.

    Args:
        parsed: the molecule to begin with.
        smiles: what `write` returns for it.
        read: reads a SMILES.
        write: writes a molecule as SMILES.
    """
    seen = {parsed.text: parsed}
    while smiles not in seen and len(seen) <= _MOST_ROUNDS:
        parsed = seen[smiles] = read(smiles)
        smiles = write(parsed)
    if smiles in seen:
        texts = list(seen)
        parsed = seen[min(texts[texts.index(smiles) :])]
    return parsed


_MOST_ROUNDS = 8
_DATIVE = {
    Chem.BondType.DATIVE,
    Chem.BondType.DATIVEONE,
    Chem.BondType.DATIVEL,
    Chem.BondType.DATIVER,
}


def _write_in_visible_order(parsed: ParsedSmiles) -> str:
    """Write the SMILES whose atom order depends only on what the network sees.

    Without charges, radicals and aromatic NH it is the canonical SMILES, but for the order of
    components: each is ranked by itself, as RDKit does.
    """
    neutral = _without_the_invisible(parsed)
    if "." not in parsed.text:
        return _write_in_order_of(neutral, parsed.mol)
    components = (
        Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False) for mol in (neutral, parsed.mol)
    )
    return ".".join(map(_write_in_order_of, *components))


def _without_the_invisible(parsed: ParsedSmiles) -> Chem.Mol:
    """Copy a molecule without charges, radicals, hydrogen counts and dative bonds."""
    neutral = Chem.RWMol(parsed.mol)
    atoms: Iterable[int] = range(neutral.GetNumAtoms())
    if parsed.in_order:  # only atoms in brackets have any, and no bond is dative
        atoms = [atom for atom, text in enumerate(ATOM.findall(parsed.text)) if text[0] == "["]
    for number in atoms:
        atom = neutral.GetAtomWithIdx(number)
        atom.SetFormalCharge(0)
        atom.SetNumRadicalElectrons(0)
        atom.SetNumExplicitHs(0)
        atom.SetNoImplicit(False)  # hydrogens then follow from bonds and elements
    if not parsed.in_order:
        for bond in neutral.GetBonds():
            if bond.GetBondType() in _DATIVE:
                bond.SetBondType(Chem.BondType.SINGLE)
    return neutral


def _write_in_order_of(neutral: Chem.Mol, mol: Chem.Mol) -> str:
    """Write a component with its atoms in the canonical order of its neutral copy."""
    neutral.UpdatePropertyCache(strict=False)
    # the ranks depend on CIP labels, and these on hydrogens
    Chem.AssignStereochemistry(neutral, force=True)
    ranks = np.array(Chem.CanonicalRankAtoms(neutral))
    return str(Chem.MolToSmiles(Chem.RenumberAtoms(mol, ranks.argsort().tolist()), canonical=False))


def read_smiles(smiles: str, strict: bool = True) -> Chem.Mol:
    """Parse a text to a sanitised RDKit molecule without atom maps, isotopes and hydrogen atoms.

    Args:
        smiles: as for `featurize`.
        strict: as for `featurize`.

    Raises:
        MoleculeError: as `featurize`.
    """
    return parse_smiles(plain_smiles(smiles), strict).mol
