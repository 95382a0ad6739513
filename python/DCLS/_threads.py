"""Work that the settings of the caller's thread must not change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def in_a_thread(function: Callable[[], Result]) -> Result:
    """Calls a function in a new thread, where torch's settings of a thread are those of a start.

    Gradient and inference mode, autocast, the modes and hooks of saved tensors that surround a
    forward pass would change what is measured. Activation checkpointing counts saved tensors.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="DCLS tuning")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
