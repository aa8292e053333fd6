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
    public = (
        _directive(f"{gmerging._WHERE[name]}.{name}", f"gmerging.{name}", 2)
        for name in gmerging.__all__
    )
    behind = (_directive(name, name, 3) for name in BEHIND)
    return _INTRODUCTION + "".join(public) + _ROOMS + "".join(behind)


def _directive(path: str, heading: str, level: int) -> str:
    options = {"heading": heading, "toc_label": heading.rpartition(".")[2], "heading_level": level}
    lines = "".join(f"      {name}: {value}\n" for name, value in options.items())
    return f"::: {path}\n    options:\n{lines}\n"
