import asyncio
from collections.abc import Sequence

import numpy as np
import orjson

from service.core.answer import Answer, Result
from service.core.engine import TaskAnswer
from service.core.reading import ItemFailure
from service.formats.answers import render
from service.schemas import PredictResponse
from tests.service.doubles import LABELS, DummyEngine

INFO = DummyEngine().info
WEIGHTS = np.array([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]], dtype=np.float32)


def answer(value: float) -> Answer:
    return Answer(
        "CCO",
        {
            task: TaskAnswer(np.full(len(labels), value, dtype=np.float32), WEIGHTS)
            for task, labels in LABELS.items()
        },
    )


def rendered(
    results: list[Result], *, tasks: tuple[str, ...] = tuple(LABELS), explain: Sequence[str] = ()
) -> PredictResponse:
    body = asyncio.run(render(results, INFO, tasks, explain))
    return PredictResponse.model_validate(orjson.loads(body))


def test_answers_match_their_documentation_and_keep_the_order() -> None:
    response = rendered([answer(0.25), ItemFailure("chemistry", "five bonds"), answer(0.5)])
    assert response.model.model_dump() == {"name": "dummy", "version": "1", "digest": "0" * 64}
    good, bad, last = response.predictions
    assert (good.index, good.smiles, good.routing, good.error) == (0, "CCO", None, None)
    assert good.tasks == {task: dict.fromkeys(labels, 0.25) for task, labels in LABELS.items()}
    assert bad.model_dump(exclude_none=True) == {
        "index": 1,
        "error": {"code": "chemistry", "message": "five bonds"},
    }
    assert last.tasks is not None
    assert (last.index, last.tasks["bbbp"]) == (2, {"p_np": 0.5})


def test_tasks_are_shown_in_the_asked_order() -> None:
    (item,) = rendered([answer(0.5)], tasks=("tox21", "bbbp")).predictions
    assert item.tasks is not None
    assert list(item.tasks) == ["tox21", "bbbp"]


def test_routing_weights_have_names() -> None:
    (item,) = rendered([answer(0.5)], tasks=("bbbp",), explain=["routing"]).predictions
    assert item.routing == {
        "bbbp": {
            "layer_0": {"bbbp": 0.5, "clintox": 0.25, "tox21": 0.25},
            "graph": {"bbbp": 0.2, "clintox": 0.30000001, "tox21": 0.5},
        }
    }


def test_many_answers_let_the_event_loop_breathe() -> None:
    async def turns() -> int:
        others = 0

        async def other() -> None:
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await render([answer(0.5)] * 100, INFO, ("bbbp",))
        task.cancel()
        return others

    assert asyncio.run(turns()) >= 5


def test_probabilities_survive_writing() -> None:
    values = [*np.random.default_rng(0).random(100).tolist(), 0.0, 1.0, 1e-7]
    items = rendered([answer(value) for value in values], tasks=("bbbp",)).predictions
    np.testing.assert_allclose(
        [item.tasks["bbbp"]["p_np"] for item in items if item.tasks], values, atol=1e-7
    )
