"""A model of the CUDA kernels, for machines without a GPU: what they need and what may bind them.

    pip install nvidia-cuda-nvdisasm
    python benchmarks/cuda_model.py                       # all layers: minutes
    python benchmarks/cuda_model.py --only '56x56 17x17'  # layers with this in their name
    python benchmarks/cuda_model.py --check               # against the committed budgets

nvcc compiles the kernels that a training step launches, for one architecture, and nvdisasm prints
their machine code. A host program (``cuda_model/cuda_model.cpp``) makes the plans and launches of
the library, and interprets that code for a few blocks of each launch. So registers, spills,
executed instructions, bank conflicts and sectors are exact for these blocks. Times are arithmetic
on them (``cuda_times.py``): **nothing is measured**. The model does not see latencies, the hits of
caches, or how far the bounds of several resources add up.

A new kernel needs no entry: the model finds what is launched. A new layer is a line in
``cuda_model/layers.hpp``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path.insert(0, str(FOLDER))

import cuda_times  # noqa: E402
from cuda_times import DEVICES, Launch  # noqa: E402

RESULT = FOLDER / "results" / "cuda-model.json"
ARCHITECTURE = "sm_90"
#: Exit status where a tool is missing.
SKIPPED = 77


class ModelError(RuntimeError):
    """A step of the model that failed."""


class MissingToolError(ModelError):
    """nvcc or nvdisasm is not there."""


def run(command: Sequence[str | Path], **options: Any) -> str:
    """Runs a command; returns what it printed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        words = " ".join(str(c) for c in command)
        raise ModelError(f"{words} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def find_nvcc() -> Path:
    """The compiler: CUDACXX, or nvcc on the path."""
    found = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if found is None:
        raise MissingToolError("nvcc was not found")
    return Path(found)


def find_nvdisasm(nvcc: Path) -> Path:
    """The disassembler: on the path, beside nvcc, or from the package nvidia-cuda-nvdisasm."""
    beside = [shutil.which("nvdisasm"), nvcc.resolve().parent / "nvdisasm"]
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        beside += sorted(Path(folder).glob("*/bin/nvdisasm"))
    for path in beside:
        if path is not None and Path(path).is_file():
            return Path(path)
    raise MissingToolError("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")


def build_program(build: Path) -> Path:
    """Builds the host program in a build folder of the C++ tests; returns its path."""
    if not (build / "CMakeCache.txt").is_file():
        run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DDCLS_TESTS=ON", "-DDCLS_CUDA=OFF"])
    run(["cmake", "--build", build, "--target", "cuda_model", "-j", str(os.cpu_count() or 1)])
    return build / "tests" / "cpp" / "cuda_model"


def sources_digest(nvcc: Path) -> str:
    """What the machine code depends on: the sources of the kernels and the compiler."""
    digest = hashlib.sha256(run([nvcc, "--version"]).encode())
    for folder in ("src", "include"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".cuh", ".hpp", ".cu"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def disassemble(kernel: str, nvcc: Path, cache: Path) -> Path:
    """The machine code of one kernel, such as ``dcls::cuda::conv_forward<float, false>``."""
    stem = re.sub(r"\W+", "_", kernel.removeprefix("dcls::cuda::")).strip("_")
    text = cache / f"{stem}.sass"
    if text.is_file():
        return text
    headers = sorted((ROOT / "src" / "cuda").glob("*/*_launch.cuh"))
    lines = [f'#include "{path.relative_to(ROOT / "src").as_posix()}"' for path in headers]
    # Taking its address makes the compiler emit the kernel.
    lines.append(f"void* keep_kernel() {{ return reinterpret_cast<void*>(&{kernel}); }}")
    source, cubin = cache / f"{stem}.cu", cache / f"{stem}.cubin"
    source.write_text("\n".join(lines) + "\n")
    includes = ["-I", ROOT / "src", "-I", ROOT / "include"]
    flags = ["-std=c++17", "-O3", f"-arch={ARCHITECTURE}", "-cubin"]
    run([nvcc, *flags, *includes, source, "-o", cubin])
    written = cache / f"{stem}.new"
    written.write_text(run([find_nvdisasm(nvcc), cubin]))
    written.rename(text)
    return text


def model(build: Path, only: str, blocks: int, jobs: int, verify: bool) -> list[Launch]:
    """Compiles, runs the model, and returns a record for each launch.

    Args:
        build: A build folder of the C++ tests.
        only: Text in the name of a layer, its dtype and layout; all layers if empty.
        blocks: Blocks of each launch that are run.
        jobs: Kernels that are compiled at a time.
        verify: Whether small layers are run whole first, and compared with the host.

    Raises:
        MissingToolError: nvcc or nvdisasm is not there.
        ModelError: A step failed, or machine code and host give different results.
    """
    nvcc = find_nvcc()
    find_nvdisasm(nvcc)
    program = build_program(build)
    which = ["--only", only] if only else []
    kernels = run([program, "--kernels", *([] if verify else which)]).splitlines()
    cache = build / "cuda-model" / sources_digest(nvcc)
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        texts = list(pool.map(lambda kernel: disassemble(kernel, nvcc, cache), kernels))
    given = [part for text in texts for part in ("--sass", str(text))]
    if verify:
        print(run([program, "--verify", *given]), end="")
    out = run([program, "--blocks", str(blocks), *which, *given])
    return [json.loads(line) for line in out.splitlines()]


def summary(launch: Launch) -> dict[str, Any]:
    """What is committed of a launch, and compared with: a row of numbers."""
    counts = launch["counts"]
    issued = sum(count[0] for count in counts.values())
    classes = cuda_times.by_class(counts)
    loads = cuda_times.wavefronts_an_access(counts, "LDS", "LDSM")
    stores = cuda_times.wavefronts_an_access(counts, "STS", "copy")
    read = sum(
        c[1] * cuda_times.access_bytes(i) for i, c in counts.items() if i.startswith(("LDG", "STG"))
    )
    sectors = sum(count[5] for i, count in counts.items() if i.startswith(("LDG.", "STG")))
    row = {key: launch[key] for key in ("layer", "dtype", "layout")}
    row["kernel"] = launch["kernel"].removeprefix("dcls::cuda::").split("<")[0]
    row["pass"] = launch["pass"]
    row |= {key: launch[key] for key in ("registers", "stack", "spill_instructions", "shared")}
    row["grid"], row["threads"] = launch["grid"], launch["threads"]
    row["double"] = sum(is_double(instruction) for instruction in counts)
    row["blocks"] = {d.name: cuda_times.blocks_a_multiprocessor(launch, d) for d in DEVICES}
    row["instructions"] = round(issued / launch["blocks"])
    row["classes"] = {k: round(n / launch["blocks"]) for k, n in classes.items() if n}
    row["load_wavefronts"] = loads and round(loads, 3)
    row["store_wavefronts"] = stores and round(stores, 3)
    row["sector_use"] = round(read / (32 * sectors), 3) if sectors else None
    row["us"], row["binds"], row["floor_us"] = {}, {}, {}
    for device in DEVICES:
        time, which = cuda_times.binding(launch, device)
        row["us"][device.name] = round(time * 1e6, 1)
        row["binds"][device.name] = which
        tensor = launch["dtype"] != "float32"
        row["floor_us"][device.name] = round(cuda_times.floor(launch, device, tensor) * 1e6, 1)
    return row


def is_double(instruction: str) -> bool:
    """Whether an instruction computes or converts in double precision."""
    return (
        re.match(r"D(ADD|MUL|FMA|SETP|MNMX|MMA)|F2F.*F64|I2F.*F64|F2I.*F64", instruction)
        is not None
    )


def table(rows: Iterable[dict[str, Any]], device: str) -> str:
    """The rows for people."""
    shown = []
    for row in rows:
        classes = row["classes"]
        fma = classes.get("FMA", 0) + classes.get("tensor", 0)
        shown.append(
            {
                "layer": f"{row['layer']}, {row['dtype']}, {row['layout']}",
                "kernel": f"{row['kernel']}, {row['pass']}",
                "regs": row["registers"],
                "spills": row["spill_instructions"],
                "KiB": round(row["shared"] / 1024, 1),
                "blocks": row["blocks"][device],
                "instr": row["instructions"],
                "FMA": f"{fma / row['instructions']:.0%}",
                "LDS": row["load_wavefronts"] or "",
                "STS": row["store_wavefronts"] or "",
                "sectors": f"{row['sector_use']:.0%}" if row["sector_use"] else "",
                "us": row["us"][device],
                "binds": row["binds"][device],
                "floor": row["floor_us"][device],
            }
        )
    columns = list(shown[0]) if shown else []
    lines = [columns, ["---"] * len(columns), *([str(r[c]) for c in columns] for r in shown)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


#: What a budget holds, and how far a kernel may exceed it: a factor and a number of units. Another
#: version of nvcc chooses other registers and instructions.
ALLOWED = {
    "registers": (1.0, 8.0),
    "spill_instructions": (1.0, 2.0),
    "double": (1.0, 0.0),
    "load_wavefronts": (1.02, 0.02),
    "store_wavefronts": (1.05, 0.05),
    "instructions": (1.05, 100.0),
}


def excesses(rows: Iterable[dict[str, Any]], budgets: Iterable[dict[str, Any]]) -> list[str]:
    """Lines for what exceeds its budget, and for launches without one."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(row[k] for k in ("layer", "dtype", "layout", "kernel", "pass"))

    def exceeds(found: float, budget: float, factor: float, more: float) -> bool:
        return found > budget * factor + more

    allowed = {key(budget): budget for budget in budgets}
    lines = []
    for row in rows:
        name = ", ".join(key(row))
        budget = allowed.get(key(row))
        if budget is None:
            lines.append(f"{name}: there is no budget")
            continue
        for what, (factor, more) in ALLOWED.items():
            if row[what] is not None and exceeds(row[what], budget[what] or 0, factor, more):
                lines.append(f"{name}: {what} is {row[what]}, the budget {budget[what]}")
        for device, time in row["us"].items():
            if exceeds(time, budget["us"][device], 1.05, 1.0):
                lines.append(
                    f"{name}: the model takes {time} us on {device}, the budget "
                    f"{budget['us'][device]}"
                )
    return lines


#: What ``DCLS._cuda_model`` takes from here.
ASSUMED = ROOT / "python" / "DCLS" / "_cuda_model.py"


def direct_parts(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The parts of the float32 rate of an H200 that the direct convolution reaches, rounded down.

    Of the four stages of a ConvNeXt-T with 17x17 kernels, and of a layer that joins all channels:
    of the pass and the layout in which it reaches least.
    """
    least: dict[str, float] = {}
    for row in rows:
        layer, kernel = row["layer"], row["kernel"]
        if not re.match(r"\d+@\d+x\d+ 17x17|delays", layer) or row["dtype"] != "float32":
            continue
        if kernel in ("conv_forward", "conv_kernel_partial"):
            part = row["floor_us"]["H200"] / row["us"]["H200"]
            least[layer] = min(part, least.get(layer, 1.0))
    return {layer: math.floor(part * 100) / 100 for layer, part in least.items()}


def write_assumed(rows: Iterable[dict[str, Any]]) -> None:
    """Writes the parts into the package."""
    parts = iter(direct_parts(rows).values())
    text = ASSUMED.read_text()
    pattern = r"(    Part\(\d+, |^DENSE: Final = )[\d.]+"
    ASSUMED.write_text(re.sub(pattern, lambda m: f"{m[1]}{next(parts)}", text, flags=re.M))


def main() -> int:
    """Runs the model; returns the exit status."""
    parser = argparse.ArgumentParser(description="Models the CUDA kernels without a GPU.")
    parser.add_argument("--only", default="", metavar="TEXT", help="layers with this in their name")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of each launch that are run")
    parser.add_argument("--device", default="H200", choices=[d.name for d in DEVICES])
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "dev", metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--verify", action="store_true", help="compare results with the host's")
    parser.add_argument("--check", action="store_true", help="compare with the budgets")
    parser.add_argument("--write", action="store_true", help="write the budgets anew")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write takes all layers")
    try:
        launches = model(options.build, options.only, options.blocks, options.jobs, options.verify)
    except MissingToolError as missing:
        print(f"cuda_model: SKIPPED, the CUDA kernels were not modelled: {missing}")
        return SKIPPED
    except ModelError as error:
        print(f"cuda_model: {error}", file=sys.stderr)
        return 1
    rows = [summary(launch) for launch in launches]
    print(f"A model of {options.device}; nothing is measured.\n")
    print(table(rows, options.device))
    if options.write:
        content = {
            "model": "cuda",
            "command": "python benchmarks/cuda_model.py --write",
            "architecture": ARCHITECTURE,
            "nvcc": run([find_nvcc(), "--version"]).splitlines()[-1],
            "blocks_run": options.blocks,
            "results": rows,
        }
        lines = json.dumps({**content, "results": 0})[:-2].rstrip()
        body = ",\n".join("    " + json.dumps(row) for row in rows)
        RESULT.write_text(f"{lines}[\n{body}\n]}}\n".replace('"results": 0[', '"results": ['))
        write_assumed(rows)
    if options.check:
        too_much = excesses(rows, json.loads(RESULT.read_text())["results"])
        for line in too_much:
            print(f"cuda_model: {line}", file=sys.stderr)
        return 1 if too_much else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
