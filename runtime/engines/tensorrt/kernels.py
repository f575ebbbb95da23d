"""The kernels that TensorRT-RTX compiles when a plan is loaded, kept for the next start."""

import contextlib
from pathlib import Path
from typing import Any

from runtime.staging import staging


class Kernels:
    """Those of one plan, in a file of the user's cache; TensorRT has none to keep.

    A place that cannot be read or written costs the next start its time, nothing else.
    """

    def __init__(self, path: Path) -> None:
        """Reads nothing yet.

        Args:
            path: named after the plan. TensorRT-RTX refuses what another version, driver or card
                wrote, and the file is written anew.
        """
        self._path = path
        self._cache: Any = None
        self._kept_profiles: set[int] = set()

    def context(self, trt: Any, engine: Any) -> Any:
        """An ``IExecutionContext`` of an ``ICudaEngine`` with the kernels kept, or None."""
        # Memory for the largest pack of one profile at a time, not of all of them.
        allocation = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        if not hasattr(trt, "IRuntimeCache"):
            return engine.create_execution_context(allocation)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(allocation)
        # No two packs have one shape: by default a kernel for each would be compiled behind the
        # run, and one pack, run twice, could come out of two kernels.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.NONE
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            self._cache.deserialize(self._path.read_bytes())
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(config)

    def keep_of(self, profile: int) -> None:
        """Writes what was compiled, after the first run of each profile."""
        if self._cache is None or profile in self._kept_profiles:
            return
        self._kept_profiles.add(profile)
        compiled = bytes(self._cache.serialize())
        with contextlib.suppress(OSError):
            if self._path.exists() and self._path.read_bytes() == compiled:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with staging(self._path) as aside:
                aside.write_bytes(compiled)
                aside.replace(self._path)
