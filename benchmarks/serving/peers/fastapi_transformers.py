"""FastAPI around transformers, as it is written most often.

python fastapi_transformers.py CHECKPOINT PORT [--batch]

Plain: each request is run as it comes, in FastAPI's pool of threads. ``--batch``: what came within
10 ms is run together, at most 32, padded to the longest.
"""

import asyncio
import sys
from contextlib import asynccontextmanager

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoTokenizer, EsmModel

MOST, WAIT_S = 32, 0.01

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = EsmModel.from_pretrained(sys.argv[1], add_pooling_layer=False).eval()


class Request(BaseModel):
    """Sequences of residues."""

    inputs: list[str]


def vectors(sequences: list[str]) -> list[list[float]]:
    """The mean over residues of the last layer."""
    batch = tokenizer(sequences, return_tensors="pt", padding=True)
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    lengths = batch["attention_mask"].sum(1).tolist()
    return [hidden[i, 1 : n - 1].mean(0).tolist() for i, n in enumerate(lengths)]


async def collect(queue: asyncio.Queue) -> None:
    """Runs what came within a moment together."""
    while True:
        waiting = [await queue.get()]
        until = asyncio.get_running_loop().time() + WAIT_S
        while len(waiting) < MOST:
            left = until - asyncio.get_running_loop().time()
            try:
                waiting.append(await asyncio.wait_for(queue.get(), max(0, left)))
            except asyncio.TimeoutError:
                break
        found = await asyncio.to_thread(vectors, [sequence for sequence, _ in waiting])
        for (_, future), vector in zip(waiting, found, strict=True):
            future.set_result(vector)


@asynccontextmanager
async def lifespan(app: FastAPI):
    """Keeps ``collect`` at work."""
    app.state.queue = asyncio.Queue()
    app.state.task = asyncio.create_task(collect(app.state.queue))
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/health/ready")
def ready() -> str:
    """It answers."""
    return "ready"


if "--batch" in sys.argv:

    @app.post("/embed")
    async def embed(request: Request) -> list[list[float]]:
        """With others."""
        futures = [asyncio.get_running_loop().create_future() for _ in request.inputs]
        for pair in zip(request.inputs, futures, strict=True):
            await app.state.queue.put(pair)
        return await asyncio.gather(*futures)

else:

    @app.post("/embed")
    def embed(request: Request) -> list[list[float]]:
        """Alone."""
        return vectors(request.inputs)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
