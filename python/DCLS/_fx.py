"""Symbolic tracing by ``torch.fx``, which hands on stand-ins that know no shape and no dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.fx import Proxy

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def traceable(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Makes a call of a function of a module one node of the graph.

    ``torch.fx.wrap`` does not serve: it does not see what other modules have imported.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for arg in (*args, *kwargs.values()):
            if isinstance(arg, Proxy):
                return arg.tracer.create_proxy("call_function", call, args, kwargs)  # type: ignore[return-value]
        return function(*args, **kwargs)

    return call
