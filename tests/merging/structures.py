"""Graphs without features whose labels follow from their structure, in the formats of
`merging.data.structure_graphs`."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np


def write_network(folder: Path, nodes: int, seed: int = 0) -> None:
    """Write a random graph whose nodes have their degree as number."""
    generator = np.random.default_rng(seed)
    weights = generator.random(nodes) ** 2
    linked = np.triu(generator.random((nodes, nodes)) < np.sqrt(np.outer(weights, weights)) / 2, 1)
    degrees = (linked | linked.T).sum(1)
    edges = "".join(f"{i} {j}\n" for i, j in np.argwhere(linked))
    numbers = "".join(f"{k} {degree}\n" for k, degree in enumerate(degrees))
    folder.mkdir()
    (folder / "edgelist.txt.gz").write_bytes(gzip.compress(edges.encode()))
    (folder / "nodelabel.txt.gz").write_bytes(gzip.compress(numbers.encode()))


def write_collection(folder: Path, form: str, count: int) -> dict[str, Any]:
    """Write rings (class 0) and stars (class 1) by turns as text or JSON; return their task for a
    configuration."""
    graphs = [_edges(4 + k % 5, k % 2) for k in range(count)]
    task: dict[str, Any] = {"kind": "collection", "labels": ["ring", "star"]}
    if form == "json":
        by_name = {f"g{k}": edges for k, edges in enumerate(graphs)}
        (folder / "graphs.json").write_text(json.dumps(by_name))
        table = "".join(f"g{k},{k % 2}\n" for k in range(count))
        (folder / "classes.csv").write_text(f"id,target\n{table}")
        return task | {"file": "graphs.json", "classes": "classes.csv"}
    lines = [str(count)]
    for k, edges in enumerate(graphs):
        nodes = 4 + k % 5
        lines.append(f"{nodes} {k % 2}")
        for node in range(nodes):
            around = [a + b - node for a, b in edges if node in (a, b)]
            lines.append(" ".join(map(str, [0, len(around), *around])))
    (folder / "graphs.txt").write_text("\n".join(lines) + "\n")
    return task | {"file": "graphs.txt"}


def _edges(nodes: int, star: int) -> list[tuple[int, int]]:
    if star:
        return [(0, k) for k in range(1, nodes)]
    return [(k, (k + 1) % nodes) for k in range(nodes)]
