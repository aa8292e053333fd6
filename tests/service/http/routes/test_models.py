"""`GET /tasks`, `GET /model` and the admin's routes."""

import pytest

from models.data.schema import MoleculeInput
from service.schemas import ModelResponse, TasksResponse
from tests.service.doubles import LABELS, serving

pytestmark = pytest.mark.anyio


async def test_description_of_the_model() -> None:
    async with serving(max_atoms=77) as client:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        tasks = TasksResponse.model_validate((await client.get("/tasks")).json())
        model = ModelResponse.model_validate((await client.get("/model")).json())
        root = await client.get("/")
    assert {task.name: task.labels for task in tasks.tasks} == LABELS
    assert (model.name, model.tasks, model.limits["max_atoms"]) == ("dummy", list(LABELS), 77)
    assert model.input == MoleculeInput(reading_rule=1)
    assert (root.status_code, root.headers["location"]) == (307, "docs")
