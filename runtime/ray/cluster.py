"""A Ray cluster: connected to or begun on this machine, and what its nodes have."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from runtime.errors import EngineError, InputError, cause
from runtime.ray.plan import Node
from runtime.threads import usable_cores

LOCAL = "local"
# Ray's own; they say nothing that a user of ours could do something about.
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
_HANDLED = ("SIGTERM", "SIGINT")


def require_ray() -> None:
    """Raises InputError where Ray is not installed."""
    if find_spec("ray") is None:
        raise InputError("Ray is not installed. pip install 'esm2-engines[ray]'")


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connects this process to a cluster, or begins one of this machine that ends with the block.

    Args:
        address: ``"local"`` begins one; ``"auto"`` finds the one that runs on this machine; else
            ``HOST:PORT``.

    Raises:
        InputError: there is no cluster, or Ray is not installed.
        EngineError: Ray failed; the message is its own.
    """
    require_ray()
    if "://" in address:
        raise InputError(
            f"--ray {address} is a Ray Client, which sends every result twice. Run the command on "
            "a node of the cluster with --ray auto, or submit it with 'ray job submit'"
        )
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"num_cpus": usable_cores(), "include_dashboard": False}
    with _our_signals():
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise InputError(
                f"no Ray cluster at {address!r} ({cause(error)}). Begin one with 'ray start "
                "--head', or take --ray local"
            ) from None
        except (RuntimeError, ValueError) as error:  # other versions, an address that is none
            raise EngineError(f"cannot connect to Ray at {address!r}: {cause(error)}") from None
    _keep_raylets_off_standard_output()
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Node]:
    """Those that are alive."""
    import ray

    found = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [
        Node(int(each.get("CPU", 0)), int(each.get("GPU", 0)), int(each.get("memory", 0)) or None)
        for each in found
    ]


@contextmanager
def _our_signals() -> Iterator[None]:
    """Ray takes signals over, and ends with another status than ``runtime.interruption`` says."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _HANDLED]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_raylets_off_standard_output() -> None:
    """It is ours (``--json``), and Ray prints there that a worker died, whatever its log level.

    What there is to say of it, ``runtime.ray.crew`` says.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None
