"""The choice behind ``method="auto"``, measured on the user's own device.

On a GPU a layer measures when it first meets a shape. ``DCLS.tune`` measures ahead, on a CPU as
well. ``DCLS_TUNING=off`` or ``DCLS.set_tuning("off")`` switches it off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn import Module

from DCLS import _checks
from DCLS.tuning import state

if TYPE_CHECKING:
    from DCLS.tuning.report import Report

__all__ = ["forget", "get_tuning", "set_tuning", "tune"]


def tune(
    model: Module,
    example_input: Any,
    *,
    again: bool = False,
    seconds: float = 1.0,
    progress: bool | None = None,
) -> Report:
    """Measures for each layer of a model which way it convolves fastest, ahead of training.

    It runs ``model`` once on ``example_input``, to see what the layers get, and then measures the
    two ways of each on synthetic tensors of those shapes. Gradient mode, autocast, device, dtype
    and memory format are those of the call: call it under ``torch.no_grad()`` for inference, and
    before ``torch.compile`` and before a graph is captured. From then on ``method="auto"`` takes
    what was measured; on a CPU too, in place of the rule that was measured on another machine.

    The model stays as it is: parameters, gradients, buffers, attributes, training flags and the
    states of the random numbers of torch, Python and NumPy. What a forward pass writes in place
    outside of buffers is not undone.

    In a process group all processes must call it together, with the same model. The first one
    measures, and all take its choices, by one broadcast at the end. No forward pass measures there.

    Choices are kept in the user's cache folder, see ``set_tuning``.

    Args:
        model: any module; its DCLS layers may be anywhere in it.
        example_input: what the model takes: a tensor, a tuple of arguments, or a dict of arguments
            by name. A batch as in training, on the device of training.
        again: whether to measure also what was measured before; default False.
        seconds: about how long a layer may take; default 1. Each way runs at least twice.
        progress: whether to show a bar on stderr; None (default) for only on a terminal.

    Returns:
        A ``DCLS.tuning.report.Report``. ``print`` shows it as a table.

    Raises:
        TypeError: ``model`` is no module, or an argument has a wrong type.
        ValueError: ``seconds`` is not positive, or ``DCLS_TUNING`` has a wrong value.
        Exception: what the model raises on the input.
    """
    from DCLS.tuning import ahead

    return ahead.tune(model, example_input, again, seconds, progress)


def set_tuning(mode: str) -> None:
    """Sets whether layers with ``method="auto"`` measure, for this process.

    The start value is that of the environment variable ``DCLS_TUNING``, else ``on``. ``off`` also
    ignores what was measured before, and leaves out the comparison of a first small kernel with the
    reference that a process makes when it first uses a GPU.

    Files are in ``$DCLS_CACHE_DIR/tuning``, else in ``$XDG_CACHE_HOME/dcls/tuning``, else in
    ``~/.cache/dcls/tuning``. They may be deleted at any time.

    Args:
        mode: ``on`` measures and keeps files, ``memory`` measures and keeps no files, ``off`` does
            not measure.

    Raises:
        TypeError: ``mode`` is not a string.
        ValueError: ``mode`` is none of the three.
    """
    state.set_mode(_checks.choice("mode", mode, state.MODES))


def get_tuning() -> str:
    """Returns what ``set_tuning`` set.

    Raises:
        ValueError: ``DCLS_TUNING`` has a wrong value.
    """
    return state.get_mode()


def forget(*, files: bool = False) -> None:
    """Forgets what was measured in this process: layers measure or choose anew.

    Args:
        files: whether to delete the files of the cache folder, too; default False.
    """
    from DCLS.tuning import lookup

    lookup.forget(_checks.flag("files", files))
