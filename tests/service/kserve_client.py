"""Asks a service by KServe's own client; runs under a Python of its own, which has `kserve`.

Arguments: the service's address and the model's name. Prints what was answered, as JSON.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def ask(address: str, model: str) -> dict[str, object]:
    """Return what the client says of the server, the model and two molecules."""
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    answers = {}
    for binary in (False, True):
        smiles = InferInput("smiles", [2], "BYTES")
        texts = np.array(["CCO", "c1ccccc1"], dtype=object)
        smiles.set_data_from_numpy(texts, binary_data=binary)
        request = InferRequest(model, [smiles])
        response = await client.infer(address, request, model_name=model)
        outputs = {output.name: output.as_numpy().tolist() for output in response.outputs}
        answers["binary" if binary else "json"] = outputs
    try:
        smiles = InferInput("smiles", [1], "BYTES", data=["C1"])
        await client.infer(address, InferRequest(model, [smiles]), model_name=model)
        refused = "no"
    except Exception as error:  # whatever the client makes of a refusal
        refused = str(error)
    said = {
        "live": await client.is_server_live(address),
        "ready": await client.is_server_ready(address),
        "model": await client.is_model_ready(address, model),
        "other": await client.is_model_ready(address, "no-such-model"),
    }
    return {**said, "answers": answers, "refused": refused}


print(json.dumps(asyncio.run(ask(*sys.argv[1:]))))
