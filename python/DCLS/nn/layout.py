"""The memory format of a model, which the parameters of a DCLS layer do not take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class KeepsLayout(TorchFunctionMode):
    """Ignores the ``memory_format`` of ``Tensor.to``.

    ``torch.nn.Module.to`` gives it to each parameter with 4 or 5 axes, which it takes for the
    kernel of a convolution. Weights and positions of a DCLS layer have other axes.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Calls ``func``, without the argument if it is ``Tensor.to``."""
        kwargs = dict(kwargs or {})
        if func is Tensor.to:
            kwargs.pop("memory_format", None)
        return func(*args, **kwargs)
