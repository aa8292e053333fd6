"""Nothing of a structure is logged, whatever happens to it."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from models.data.depiction import DepictionStyle
from service import app
from service.core import drawing
from service.core.drawing import Drawing, draw
from service.core.explanations.alerts import alerts_of
from service.core.layout import lay_out
from service.core.matching import Search, search, smarts_failure
from service.core.reading import ItemFailure, MoleculeLimits, map_guarded, read
from service.telemetry import tracing
from tests.service.doubles import engine_with_drugs, serving

pytestmark = pytest.mark.anyio
SECRET = "[Se]CC(I)(Br)"
"""It is in every structure here, and in nothing else."""
GOOD = f"C{SECRET}C"
TEXTS = [
    GOOD,
    f"C1{SECRET}C",  # an open ring
    f"C{SECRET}C(C)(C)(C)(C)C",  # a valence that cannot be
    f"C{SECRET}c1cccc1",  # no Kekule form
    f"C{SECRET}C |broken|",
    f"[U]{SECRET}C",  # the model fails
    f"InChI=1S/{SECRET}",
    f"\n  x\n{SECRET}\n  1  0  0  0 V2000\nM  END\n",
]
SMARTS = [SECRET, f"{SECRET}(", f"[{SECRET}", f"C1{SECRET}", f"{SECRET} x"]


class RecordedSpans:
    """A tracer that keeps what spans say."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    @contextmanager
    def start_as_current_span(self, name: str, **options: Any) -> Iterator["RecordedSpans"]:
        self.said.append([name, options.get("attributes")])
        try:
            yield self
        except Exception as error:
            self.said.append(repr(error))  # as OpenTelemetry's does
            raise

    def set_attribute(self, name: str, value: object) -> None:
        self.said.append([name, value])

    def set_status(self, *said: object) -> None:
        self.said.append(said)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> RecordedSpans:
    pytest.importorskip("opentelemetry.propagate")
    recorded = RecordedSpans()
    monkeypatch.setattr(tracing, "_tracer", recorded)
    monkeypatch.setattr(app, "stop_tracing", lambda: None)
    return recorded


async def test_requests_leave_nothing_of_a_structure(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], spans: RecordedSpans
) -> None:
    caplog.set_level(logging.DEBUG)
    statuses = []
    async with serving(engine_with_drugs()) as client:
        bodies: list[tuple[str, dict[str, Any]]] = []
        for text in [*([text] for text in TEXTS), TEXTS[:4]]:
            bodies += [
                ("/predict", {"smiles": text, "explain": ["drugs", "alerts"]}),
                ("/depict", {"smiles": text, "weights": [[1.0]] * len(text)}),
                ("/match", {"smiles": text, "smarts": "C"}),
            ]
        bodies += [("/match", {"smiles": ["C", GOOD], "smarts": smarts}) for smarts in SMARTS]
        bodies += [("/predict", {"smiles": GOOD, "tsaks": [SECRET]}), ("/match", {"smarts": GOOD})]
        bodies += [("/match", {"smiles": ["C"], "smarts": SECRET * 100})]
        for path, body in bodies:
            with pytest.MonkeyPatch.context() as quiet:
                quiet.setattr(client._transport, "raise_app_exceptions", False)
                statuses.append((await client.post(path, json=body)).status_code)
        lines = "".join(json.dumps(text) + "\n" for text in TEXTS)
        await client.post("/predict/stream?explain=alerts", content=lines)
        table = "smiles\n" + "".join(f'"{text}"\n' for text in TEXTS)
        for output in ("csv", "sdf"):
            path = f"/predict/file?explain=alerts&output={output}"
            await client.post(path, files={"file": ("m.csv", table)})
    assert {200, 422, 500} <= set(statuses), "every way through was taken"
    written = capfd.readouterr()
    said = [caplog.text, written.out, written.err, repr(spans.said)]
    said += [repr(vars(record)) for record in caplog.records]
    assert "the model broke" in caplog.text
    assert any(name == "parse" for name, *_ in spans.said)
    for text in said:
        for piece in (SECRET, "Se]", "(I)", "I)(Br"):
            assert piece not in text


def test_processes_that_read_write_nothing_of_a_structure(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What the processes do, done here: their output is that of the service."""
    limits = MoleculeLimits(500, 5000)
    for text in TEXTS:
        read(text, limits)
        draw(Drawing(text, DepictionStyle()), limits)
        alerts_of(text)
        lay_out(text)
        for smarts in ("C", SECRET):
            search(Search(text, smarts), limits)
    list(map(smarts_failure, SMARTS))

    def broken(*_: object) -> str:
        raise RuntimeError(f"Pre-condition violated for {GOOD}")

    monkeypatch.setattr(drawing, "depict", broken)
    work = partial(draw, limits=limits)
    (failure,) = map_guarded(work, [Drawing(GOOD, DepictionStyle())])
    assert isinstance(failure, ItemFailure)
    assert failure.code == "unreadable"
    assert "a molecule could not be read: RuntimeError" in caplog.text
    written = capfd.readouterr()
    for text in (caplog.text, written.out, written.err, repr(failure)):
        assert SECRET not in text
