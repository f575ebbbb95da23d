"""Where the card's time goes in one forward: PyTorch's profiler, kernels by their names."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.results import KernelTime

# Those that a report names; the others are added up.
NAMED = 16
OTHERS = "all others"


def kernels_of(run: Callable[[], object]) -> list[KernelTime]:
    """Kernels and copies of one call of ``run``, those that take longest first."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    calls: dict[str, int] = defaultdict(int)
    microseconds: dict[str, float] = defaultdict(float)
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            calls[event.name] += 1
            microseconds[event.name] += event.device_time
    names = sorted(calls, key=lambda name: -microseconds[name])
    found = [KernelTime(name, calls[name], microseconds[name] / 1000) for name in names[:NAMED]]
    if rest := names[NAMED:]:
        total = sum(microseconds[name] for name in rest) / 1000
        found.append(KernelTime(OTHERS, sum(calls[name] for name in rest), total))
    return found
