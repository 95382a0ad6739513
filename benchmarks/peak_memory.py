"""Extra peak memory of a step: the peak resident during the step minus what was resident before it.

What the step returns counts, and what it allocates on the way; its inputs, which exist before, do
not. A step that returns the constructed kernel and needs nothing else has an extra peak of exactly
one kernel.

On CUDA this is ``torch.cuda.max_memory_allocated()`` after ``reset_peak_memory_stats()``, minus
``memory_allocated()`` before.

On CPU it is what Linux counts for a fresh child process: writing 5 to ``/proc/self/clear_refs``
sets the high-water mark ``VmHWM`` of ``/proc/self/status`` back to what is resident now; the step
runs; the difference is the answer. ``getrusage().ru_maxrss`` cannot be reset, and a child starts
with that of the process that started it. What would disturb is taken away:

* Pools of threads, caches and lazily loaded code: the step runs twice before it is measured; once
  if that takes more than a second.
* Memory that malloc keeps: every block of 16 KiB or more has its own mapping, which its release
  gives back to the system, and the rest is trimmed before the step. One arena serves all threads.
  (Without own mappings blocks fall into holes of the heap: that hides small peaks and adds
  fragmentation to large ones, up to twice for a step that makes many temporaries.)
* Huge pages, which are resident before they are used: switched off for the process.
* The counters: Linux updates them in batches of some tens of pages for each CPU, up to 256 KiB in
  all on a machine of 2 CPUs. So a step whose extra peak is below 16 MiB is repeated on a problem
  that is larger by a factor, ``Peak.scale``, until it is not.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

Step = Callable[[], object]

#: Extra peaks below this many bytes are measured again on a larger problem.
RESOLVED_BYTES = 16 << 20
#: A problem grows at most this much at a time, and at most to MAX_SCALE.
MAX_GROWTH = 16
MAX_SCALE = 1 << 20

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_PR_SET_THP_DISABLE = 41


class Peak(NamedTuple):
    """An extra peak, and by how much larger the problem was that gave it."""

    extra_bytes: int
    scale: int

    def times(self, unit_bytes: int) -> float:
        """The extra peak in multiples of ``unit_bytes``, a size in the problem of scale 1."""
        return self.extra_bytes / (unit_bytes * self.scale)

    @property
    def mebibytes(self) -> float:
        """The extra peak in the problem of scale 1."""
        return self.times(1 << 20)


def unavailable(device: str) -> str:
    """Says why extra peaks cannot be measured here; "" where they can."""
    if device == "cuda":
        return ""
    try:
        _reset_high_water()
        _high_water()
    except (OSError, LookupError) as error:
        return f"this system does not let a process reset its peak memory: {error}"
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        return "the C library has no mallopt, so what malloc keeps would count"
    return ""


def extra_peaks(
    script: Path,
    factory: str,
    arguments: Sequence[Mapping[str, Any]],
    *,
    device: str,
    threads: int,
) -> list[Peak]:
    """Measures steps, on CPU in one fresh child process.

    Args:
        script: the Python file that defines ``factory``; the child imports it.
        factory: name of a function that is called as ``factory(scale=scale, **arguments[i])`` and
            returns a step. The extra peak of the step should grow in proportion to ``scale``, an
            int from 1.
        arguments: what to measure, one after the other; on CPU whatever JSON can hold.
        device: ``cpu`` or ``cuda``.
        threads: threads of torch, on CPU.

    Raises:
        RuntimeError: the child failed; with the end of what it said.
    """
    if device == "cuda":
        make = _load(script, factory)
        return [_cuda_peak(make(scale=1, **each)) for each in arguments]
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MALLOC_CONF")}
    request = {"factory": factory, "arguments": [dict(each) for each in arguments]}
    child = subprocess.run(
        [sys.executable, __file__, str(script.resolve()), str(threads)],
        input=json.dumps(request),
        env={**environment, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        said = child.stderr.strip()[-2000:] or "nothing on stderr"
        raise RuntimeError(
            f"measuring memory failed with exit status {child.returncode} (-9: out of memory): "
            f"{said}"
        )
    return [Peak(*each) for each in json.loads(child.stdout.splitlines()[-1])]


def _load(script: Path, factory: str) -> Callable[..., Step]:
    """Returns a function of a Python file."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise ValueError(f"script must be a Python file, got {script}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    function: Callable[..., Step] = getattr(module, factory)
    return function


def _cuda_peak(step: Step) -> Peak:
    for _ in range(2):
        step()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = step()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    del result
    return Peak(extra, 1)


# ------------------------------------------------------------------------------ the child process


def _reset_high_water() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _high_water() -> int:
    """Peak resident bytes since the last reset."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise LookupError("/proc/self/status has no VmHWM")


def _steady_malloc(libc: ctypes.CDLL) -> None:
    for name, parameter, value in (
        ("M_ARENA_MAX", _M_ARENA_MAX, 1),
        ("M_MMAP_THRESHOLD", _M_MMAP_THRESHOLD, 16 << 10),
        ("M_TRIM_THRESHOLD", _M_TRIM_THRESHOLD, 0),
        ("M_TOP_PAD", _M_TOP_PAD, 0),
    ):
        if libc.mallopt(parameter, value) != 1:
            raise RuntimeError(f"mallopt refused {name} = {value}")
    # Where the system has no huge pages there is nothing to switch off.
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def _cpu_extra(step: Step, libc: ctypes.CDLL) -> int:
    begin = time.perf_counter()
    step()
    if time.perf_counter() - begin < 1:
        step()
    gc.collect()
    libc.malloc_trim(0)
    _reset_high_water()
    before = _high_water()
    result = step()
    extra = _high_water() - before
    del result
    return extra


def _cpu_peak(make: Callable[..., Step], arguments: Mapping[str, Any], libc: ctypes.CDLL) -> Peak:
    scale = 1
    while True:
        extra = _cpu_extra(make(scale=scale, **arguments), libc)
        if extra >= RESOLVED_BYTES or scale >= MAX_SCALE:
            return Peak(extra, scale)
        growth = math.ceil(RESOLVED_BYTES / extra) if extra > 0 else MAX_GROWTH
        scale = min(scale * min(max(growth, 2), MAX_GROWTH), MAX_SCALE)


def main() -> None:
    """Runs the child: a script and a number of threads in argv, JSON on stdin and stdout."""
    script, threads = Path(sys.argv[1]), int(sys.argv[2])
    request = json.load(sys.stdin)
    libc = ctypes.CDLL(None)
    _steady_malloc(libc)
    torch.set_num_threads(threads)
    make = _load(script, request["factory"])
    print(json.dumps([_cpu_peak(make, each, libc) for each in request["arguments"]]))


if __name__ == "__main__":
    main()
