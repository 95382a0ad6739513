"""Arguments that no caller should give: an error that names one, never a crash.

The calls run in a child process. It says which one it is about to make, so that the parent knows
the one that ended it.
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzz.draw import Case, draw
from fuzz.problems import make
from torch import Tensor

from DCLS import functional

#: What an error may be, and what it says when there is no memory: there no argument is wrong.
ALLOWED = (TypeError, ValueError, RuntimeError, NotImplementedError)
NO_MEMORY = re.compile("memory|too large|overflow|storage size", re.IGNORECASE)

#: Seconds after which a call counts as hung, and bytes that a child may take.
PATIENCE = 60
MEMORY = 6 << 30

_VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "x",
    "empty text": lambda: "",
    "true": lambda: True,
    "float": lambda: 2.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "zero": lambda: 0,
    "negative": lambda: -1,
    "2**24 + 1": lambda: 2**24 + 1,
    "2**31": lambda: 2**31,
    "2**62": lambda: 2**62,
    "2**63": lambda: 2**63,
    "2**70": lambda: 2**70,
    "2**2000": lambda: 2**2000,
    "empty list": list,
    "nested list": lambda: [[1]],
    "list of text": lambda: ["a", "b"],
    "long list": lambda: [1] * 9,
    "huge list": lambda: [2**40] * 2,
    "dict": dict,
    "object": object,
    "numpy": lambda: torch.ones(3).numpy(),
    "scalar": lambda: torch.tensor(1.0),
    "empty tensor": lambda: torch.empty(0),
    "int tensor": lambda: torch.ones(2, 3, 4, dtype=torch.int64),
    "complex tensor": lambda: torch.ones(2, 3, 4, dtype=torch.complex64),
    "bool tensor": lambda: torch.ones(2, 3, 4, dtype=torch.bool),
    "9-D tensor": lambda: torch.ones([1] * 9),
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "meta tensor": lambda: torch.empty(2, 3, 4, device="meta"),
    "huge expanded tensor": lambda: torch.ones(1).expand(2**20, 2**10, 2**10),
}

#: What is done to a tensor that fits.
_SPOILED: dict[str, Callable[[Tensor], Any]] = {
    "to meta": lambda t: t.to("meta"),
    "freed": lambda t: _freed(t),
    "to sparse": lambda t: t.to_sparse() if t.numel() else t,
    "to mkldnn": lambda t: t.float().contiguous().to_mkldnn() if t.ndim <= 5 else t,
    "one axis more": lambda t: t.unsqueeze(0),
    "one axis less": lambda t: t[0] if t.ndim and t.shape[0] else t,
    "one longer": lambda t: torch.cat([t, t[..., :1]], -1) if t.ndim else t,
    "nothing of it": lambda t: t[..., :0] if t.ndim else t,
    "to float16": lambda t: t.half(),
    "to int": lambda t: t.int(),
    "list": lambda t: t.tolist(),
    "huge": lambda t: t[:1].expand(2**40, *t.shape[1:]) if t.ndim and t.numel() else t,
}


def _freed(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy.untyped_storage().resize_(0)
    return copy


def _call(case: Case) -> tuple[str, dict[str, Any], Callable[..., Any]]:
    """A call that is right, its arguments by name."""
    problem = make({**case, "mode": "grad", "batch": case.get("batch") or 1})
    t: dict[str, Any] = dict(problem.tensors)
    kind = case["kind"]
    version = case["version"]
    if kind == "conv":
        t["kernel"] = t.pop("weight")
        t |= {n: case[n] for n in ("stride", "padding", "dilation", "groups")}
        t["support"] = problem.constants.get("support")
        return "direct_conv", t, functional.direct_conv
    if kind == "layer":
        return "layer", t, problem.run
    t |= {"dilated_kernel_size": case["kernel"], "version": version}
    t |= {"sigma_min": case["sigma_min"] if "SIG" in t else None}
    t.setdefault("SIG", None)
    if kind == "construct":
        return "construct_kernel", t, functional.construct_kernel
    t |= {"stride": case["stride"], "padding": case["padding"]}
    if kind == "im2col":
        return "im2col", t, functional.im2col
    t |= {"groups": case["groups"], "workspace": None}
    t.setdefault("bias", None)
    return "im2col_conv", t, functional.im2col_conv


def _operator(name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The operator itself, with arguments as its schema has them."""
    operator = getattr(torch.ops.dcls, name)
    names = [a.name for a in operator.default._schema.arguments]
    known = {**arguments, "workspace": 1 << 20}
    if "bias" in names:
        known.setdefault("bias", None)
    if "sigma_min" in names and known.get("sigma_min") is None:
        known["sigma_min"] = 0.3
    if name.startswith("im2col"):
        known["padding"] = [p for p in arguments["padding"] for _ in range(2)]
    return {n: known[n] for n in names}, operator


def draw_attack(seed: int) -> Case:
    """Returns the hostile call of a seed: a case, which call it is, and what is done to what."""
    r = random.Random(seed)
    case = draw(r.randrange(1 << 32))
    attack: Case = {"case": case, "operator": case["kind"] != "layer" and r.random() < 0.3}
    _, arguments, _ = _prepare(attack)
    places = r.sample(sorted(arguments), min(len(arguments), r.choice([1, 1, 1, 2])))
    attack["spoiled"] = {
        place: r.choice(
            sorted(_SPOILED)
            if isinstance(arguments[place], Tensor) and r.random() < 0.6
            else sorted(_VALUES)
        )
        for place in places
    }
    return attack


def _prepare(attack: Case) -> tuple[str, dict[str, Any], Any]:
    """The call before it is spoiled."""
    name, arguments, function = _call(attack["case"])
    if attack["operator"]:
        arguments, function = _operator(name, arguments)
        name = f"torch.ops.dcls.{name}"
    return name, arguments, function


def make_attack(attack: Case) -> str | None:
    """Makes a hostile call; returns what is wrong with its outcome."""
    name, arguments, function = _prepare(attack)
    for place, how in attack["spoiled"].items():
        spoil = _SPOILED.get(how)
        arguments[place] = _VALUES[how]() if spoil is None else spoil(arguments[place])
    told = [f"{place}: {how}" for place, how in attack["spoiled"].items()]
    what = f"{name}({', '.join(told)})"
    try:
        output = function(**arguments)
        if isinstance(output, Tensor) and output.requires_grad:
            output.sum().backward()
    except ALLOWED as error:
        names = set(arguments) | {"input", "kernel", "weight", "dilated_kernel_size"}
        text = str(error)
        if any(re.search(rf"\b{n}\b", text) for n in names) or NO_MEMORY.search(text):
            return None
        # Torch reads a number out of a tensor before the operator is called.
        if attack["operator"] and "Cannot access storage of" in text:
            return None
        # Torch's own convolution speaks for itself, and so does what puts tensors into a layer.
        own = isinstance(error, RuntimeError) or "is not an instance of torch.Tensor" in text
        if name == "layer" and own:
            return None
        return f"{what}: {type(error).__name__} names no argument: {text[:200]}"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {str(error)[:200]}"
    return None


def serve(seed: int, count: int) -> None:
    """Makes ``count`` calls, in the child; says what it does line by line."""
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    for i in range(seed, seed + count):
        print(json.dumps(["start", i]), flush=True)  # noqa: T201
        print(json.dumps(["end", i, make_attack(draw_attack(i))]), flush=True)  # noqa: T201


def run_hostile(seed: int, seconds: float, outcomes: Counter[str], count: int = 10**6) -> list[str]:
    """Makes hostile calls in children for a time; returns the failures."""
    end, failures = time.monotonic() + seconds, []
    while count > 0 and time.monotonic() < end:
        child = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("fuzz.py")),
                "--serve",
                str(seed),
                str(count),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        at = None
        for line in child.stdout:
            word, number, *found = json.loads(line)
            at = number if word == "start" else None
            if word == "end":
                outcomes["hostile"] += 1
                if found[0]:
                    failures.append(f"{found[0]}\n  python tests/fuzz/fuzz.py --hostile {number}")
                seed, count = number + 1, count - 1
                if time.monotonic() > end:
                    break
        child.stdout.close()
        if at is None:
            child.kill()
        code = child.wait()
        if at is not None:
            failures.append(
                f"the process ended with {code}\n  python tests/fuzz/fuzz.py --hostile {at}"
            )
            seed, count = at + 1, count - 1
    return failures
