"""Locust's users: one protein a request, every answer checked.

Run by ``benchmarks.serving.load`` with Locust's own Python. ``SERVING_TRUTH``: an .npz of
``sequences`` and ``vectors [P, E]``; ``SERVING_USERS``: connections; ``SERVING_RATE``:
requests a second of all users, or 0 for as many as there are answers; ``SERVING_MODEL``: asks in
OpenAI's shape for this model; ``SERVING_OUT``: JSON of all that was seen.
"""

import itertools
import json
import os
import random
import time
from pathlib import Path

import gevent
import numpy as np
import orjson
from locust import constant_pacing, events, poisson, task
from locust.contrib.fasthttp import FastHttpUser

MOST_RELATIVE_L2 = 1e-4

with np.load(os.environ["SERVING_TRUTH"]) as stored:
    SEQUENCES, VECTORS = stored["sequences"].tolist(), stored["vectors"]
USERS = int(os.environ["SERVING_USERS"])
MODEL = os.environ.get("SERVING_MODEL")
PATH = "/embeddings" if MODEL else "/embed"
RATE = float(os.environ["SERVING_RATE"])
places = itertools.cycle(range(len(SEQUENCES)))
sent = 0
answers: list[tuple[float, float, int]] = []  # when, seconds, residues
wrong: list[str] = []


class Client(FastHttpUser):
    """Asks for one protein after another."""

    network_timeout = connection_timeout = 600.0
    # constant_throughput wakes all users at once: each counts from when it was made.
    wait_time = poisson(RATE / USERS) if RATE else constant_pacing(0)

    def on_start(self) -> None:
        """Users of a rate wait before the first request as before any other."""
        if RATE:
            gevent.sleep(random.expovariate(RATE / USERS))

    @task
    def embed(self) -> None:
        """One protein; counted when its answer is right."""
        global sent
        place = next(places)
        inputs = [SEQUENCES[place]]
        body = orjson.dumps({"model": MODEL, "input": inputs} if MODEL else {"inputs": inputs})
        sent += 1
        began = time.time()
        try:
            response = self.client.post(
                PATH, data=body, headers={"Content-Type": "application/json"}, catch_response=True
            )
        except gevent.GreenletExit:
            # At the end Locust stops users that wait; this one woke in the same moment.
            sent -= 1
            raise
        with response:
            ended = time.time()
            problem = self.problem(place, response)
            if problem:
                wrong.append(problem)
                response.failure(problem)
            else:
                answers.append((ended, ended - began, len(SEQUENCES[place])))
                response.success()

    def problem(self, place: int, response) -> str:
        """Why it is no right answer."""
        if response.status_code != 200:
            return f"status {response.status_code}: {response.text[:200]}"
        answer = orjson.loads(response.content)
        got = np.array([answer["data"][0]["embedding"]] if MODEL else answer, np.float32)
        if got.shape != (1, VECTORS.shape[1]):
            return f"shape {got.shape}"
        error = np.linalg.norm(got[0] - VECTORS[place]) / np.linalg.norm(VECTORS[place])
        return "" if error <= MOST_RELATIVE_L2 else f"relative L2 {error:.1e}"


@events.quitting.add_listener
def write(environment, **_) -> None:
    """What was seen."""
    with Path(os.environ["SERVING_OUT"]).open("w") as file:
        json.dump({"sent": sent, "answers": answers, "wrong": wrong}, file)
