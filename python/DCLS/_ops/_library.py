"""The namespace ``dcls`` of torch's operators: one library for all modules that define some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

library = torch.library.Library("dcls", "DEF")


def register(
    name: str,
    *,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    vmap: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Implements a defined operator for CPU and CUDA.

    Args:
        name: the operator, without the namespace.
        kernel: the implementation.
        fake: the same for tensors without data.
        vmap: the batching rule, as :func:`torch.library.register_vmap` takes it.
        setup_context: what to save for ``backward``.
        backward: the gradients of the arguments; None for an operator without gradients.

    Returns:
        What calls the operator, under torch.func's transforms too: torch.func cannot differentiate
        an operator whose autograd is registered with torch.library, but it can an
        :class:`torch.autograd.Function` with a separate setup_context. That serves only there: the
        operator costs less, and is what the compiler sees.
    """
    qualified = f"dcls::{name}"
    for key in ("CPU", "CUDA"):
        library.impl(name, kernel, key)
    torch.library.register_fake(qualified, fake, lib=library)
    torch.library.register_vmap(qualified, vmap, lib=library)
    operator: Any = getattr(torch.ops.dcls, name)
    if backward is None:
        return operator  # type: ignore[no-any-return]
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=library)
    members = {"forward": operator, "setup_context": setup_context, "backward": backward}
    members = {key: staticmethod(member) for key, member in {**members, "vmap": vmap}.items()}
    function: Any = type(name, (torch.autograd.Function,), members)

    def call(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return function.apply(*args)
        return operator(*args)

    return call
