"""What a kernel's counts mean on a GPU: classes of instructions, occupancy and modelled times.

Everything here is arithmetic on counts. Nothing is measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Of an instruction, in all blocks run: warp instructions, lanes, accesses, wavefronts, the least
#: that these accesses could take, sectors.
Count = list[int]
Launch = dict[str, Any]


@dataclass(frozen=True)
class Device:
    """A GPU. Rates are of the whole chip, or for each multiprocessor and clock."""

    name: str
    multiprocessors: int
    clock: float  #: Hz, boost
    memory: float  #: bytes/s that a copy reaches
    l2: float  #: bytes/s
    fma_lanes: int  #: float32 multiply-adds of a multiprocessor and clock
    tensor: float  #: 16-bit multiply-adds/s with mma.sync
    tensor_tf32: float  #: the same in TF32
    shared: int  #: bytes of shared memory of a multiprocessor
    threads: int  #: of a multiprocessor, at most
    blocks: int  #: of a multiprocessor, at most
    integer_lanes: int = 64
    issue: int = 4  #: warp instructions of a multiprocessor and clock
    registers: int = 65536


#: Sources: NVIDIA's whitepapers on Hopper, Ampere (GA100) and Ada, and the CUDA programming guide's
#: table of compute capabilities. Memory: nine tenths of the peak. L2: what microbenchmarks of
#: H100, A100 and RTX 4090 report. Tensor cores with mma.sync: on Hopper five eighths of the peak,
#: which only wgmma reaches, elsewhere the peak. The peaks of the data sheets in TF32 without
#: sparsity are 494.5, 156 and 82.6 TFLOP/s, where a multiply-add counts as two.
DEVICES = (
    Device("H200", 132, 1.98e9, 4.3e12, 5.5e12, 128, 310e12, 155e12, 228 << 10, 2048, 32),
    Device("A100", 108, 1.41e9, 1.8e12, 4.5e12, 64, 156e12, 78e12, 164 << 10, 2048, 32),
    Device("RTX 4090", 128, 2.52e9, 0.9e12, 5.0e12, 128, 82.6e12, 41.3e12, 100 << 10, 1536, 24),
)

#: Classes of instructions, by their names: the first that fits.
CLASSES = {
    "tensor": r"HMMA|IMMA",
    "FMA": r"FFMA|FMUL|FADD",
    "LDS": r"LDS|LDSM",
    "STS": r"STS",
    "copy": r"LDGSTS|UBLKCP",
    "LDG": r"LDG|LD",
    "STG": r"STG|ST",
    "local": r"LDL|STL",
    "barrier": r"BAR|BSSY|BSYNC|BREAK|WARPSYNC|DEPBAR|LDGDEPBAR|NANOSLEEP|YIELD",
    "branch": r"BRA|BRX|BRXU|CALL|RET|EXIT|NOP",
    "integer": r"U?(IMAD|IADD3?|LEA|SHF|LOP3|PLOP3|ISETP|SEL|MOV|PRMT|POPC|FLO|BREV)"
    r"|VIADD|VIADDMNMX|VIMNMX|IMNMX|IABS|R2P|P2R|R2UR|UP2UR|S2R|S2UR|CS2R|U?LDC|VOTEU?",
    "other": r".*",
}
#: Of them, what the pipe for integers does; IMAD and moves by it belong to that of FMA.
_FMA_PIPE = re.compile(r"(FFMA|FMUL|FADD|IMAD|HFMA2|HADD2|HMUL2)(\.|$)")
_MULTIPLY_ADDS = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}


def class_of(instruction: str) -> str:
    """The class of an instruction such as ``LDS.64``."""
    name = instruction.split(".")[0]
    return next(key for key, pattern in CLASSES.items() if re.fullmatch(pattern, name))


def access_bytes(instruction: str) -> int:
    """Bytes that a load or store moves for each lane."""
    parts = instruction.split(".")[1:]
    sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
    return next((sizes[part] for part in parts if part in sizes), 4)


def by_class(counts: Mapping[str, Count]) -> dict[str, int]:
    """Warp instructions of each class, of all blocks run."""
    result = dict.fromkeys(CLASSES, 0)
    for instruction, count in counts.items():
        result[class_of(instruction)] += count[0]
    return result


def wavefronts_an_access(counts: Mapping[str, Count], *classes: str) -> float | None:
    """Wavefronts of an access to shared memory over the least possible; None without an access.

    The least is 1 for an access of 4 bytes a lane, 2 of 8 and 4 of 16. So 1 means that there is no
    bank conflict.
    """
    wavefronts = least = 0
    for instruction, count in counts.items():
        if class_of(instruction) not in classes and instruction.split(".")[0] not in classes:
            continue
        wavefronts += count[3]
        least += count[4]
    return wavefronts / least if least else None


def multiply_adds(counts: Mapping[str, Count]) -> tuple[float, float]:
    """Multiply-adds on tensor cores, of all blocks run: in 16 bits, in TF32."""
    half = tf32 = 0.0
    for instruction, count in counts.items():
        parts = instruction.split(".")
        if parts[0] != "HMMA":
            continue
        work = count[0] * next(_MULTIPLY_ADDS[part] for part in parts if part in _MULTIPLY_ADDS)
        if "TF32" in parts:
            tf32 += work
        else:
            half += work
    return half, tf32


def blocks_a_multiprocessor(launch: Launch, device: Device) -> int:
    """Blocks that a multiprocessor holds at a time: 0 if it cannot hold one.

    A warp's registers are given out in steps of 256; the system takes 1 KiB of shared memory of
    each block, which ``launch["shared"]`` contains.
    """
    warps = math.ceil(launch["threads"] / 32)
    registers = math.ceil(launch["registers"] * 32 / 256) * 256 * warps
    return min(
        device.registers // registers,
        device.shared // max(1, launch["shared"]),
        device.threads // (warps * 32),
        device.blocks,
    )


def times(launch: Launch, device: Device) -> dict[str, float]:
    """Seconds that each resource of a GPU needs for a launch.

    ``shared`` is the pipe of shared memory and L1: wavefronts of the one, lines of the other. The
    multiprocessor with the most blocks counts. DRAM moves input and output once, or what the
    kernel reads and writes if that is less. A copy moves both twice.
    """
    counts: Mapping[str, Count] = launch["counts"]
    of_block = 1 / launch["blocks"]
    most = math.ceil(launch["grid"] / device.multiprocessors)  # blocks
    clocks = {
        "issue": sum(count[0] for count in counts.values()) / device.issue,
        "shared": float(sum(count[3] for count in counts.values())),
        "FMA": 32 * sum(c[0] for i, c in counts.items() if _FMA_PIPE.match(i)) / device.fma_lanes,
        "integer": 32
        * sum(
            c[0] for i, c in counts.items() if class_of(i) == "integer" and not _FMA_PIPE.match(i)
        )
        / device.integer_lanes,
    }
    result = {key: most * of_block * value / device.clock for key, value in clocks.items()}
    half, tf32 = multiply_adds(counts)
    share = most * device.multiprocessors * of_block
    result["tensor"] = share * (half / device.tensor + tf32 / device.tensor_tf32)
    sectors = sum(count[5] for count in counts.values()) * of_block * launch["grid"] * 32
    result["L2"] = sectors / device.l2
    moved = launch["input_bytes"] + launch["output_bytes"]
    if "to_channels_first" in launch["kernel"]:
        moved *= 2
    result["DRAM"] = min(sectors, moved) / device.memory
    return result


def binding(launch: Launch, device: Device) -> tuple[float, str]:
    """The modelled time of a launch in seconds, and the resource that needs it."""
    found = times(launch, device)
    which = max(found, key=lambda key: found[key])
    return found[which], which


def floor(launch: Launch, device: Device, tensor: bool = False) -> float:
    """Seconds that no kernel could beat: input and output once, or the products of the cells.

    Args:
        launch: The launch.
        device: The GPU.
        tensor: Whether the products are on tensor cores, which are then left out: they could be
            done in a form that needs fewer.
    """
    moved = (launch["input_bytes"] + launch["output_bytes"]) / device.memory
    rate = device.multiprocessors * device.clock * device.fma_lanes
    return max(moved, 0.0 if tensor else launch["products"] / rate)
