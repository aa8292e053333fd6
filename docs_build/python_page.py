"""The page of the Python interface; mkdocstrings fills it from signatures and docstrings."""

import gmerging

_INTRODUCTION = """# Python interface

`import gmerging` is the public face. It imports what it names on first use, so that the import
itself costs nothing.

"""
_ROOMS = """## Rooms behind it

What the pages here use of `models`, `merging` and `service`. Their names may move between versions;
those of `gmerging` stay.

"""
BEHIND = (
    "models.artifact.load_artifact",
    "models.artifact.save_artifact",
    "models.data.smiles.featurize",
    "models.data.molecule.collate",
    "models.experts.unified.UnifiedModel",
    "models.families.base.ModelFamily",
    "models.transport.twd.twd",
    "models.transport.solve.solve_transport",
    "merging.family.OfflineFamily",
    "merging.mergers.registry.MergerSpec",
    "merging.mergers.registry.merge",
    "merging.imports.importing.import_models",
    "merging.imports.hu2020.read_hu2020",
    "merging.data.graph_file.write_graphs",
    "merging.data.graph_file.write_molecules",
)
"""Functions and classes of the rooms that pages name."""


def python_page() -> str:
    """Return the page, in Markdown with mkdocstrings' directives."""
    public = [f"{gmerging._WHERE[name]}.{name}" for name in gmerging.__all__]
    text = _INTRODUCTION + "".join(map(_directive, public))
    return text + _ROOMS + "".join(map(_directive, BEHIND))


def _directive(name: str) -> str:
    return f"::: {name}\n    options:\n      heading_level: 3\n\n"
