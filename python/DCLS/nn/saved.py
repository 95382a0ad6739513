"""What a state dict says of a layer beside its tensors, and warnings where another one loads it."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any

from DCLS.nn.parameters import _DclsParameters

#: The key in the metadata that torch keeps for each module.
_KEY = "dcls"


class _TellsItsGrid(_DclsParameters):
    """A layer whose state dict has its size, version and the axes of its rows as metadata.

    The tensors do not tell: positions of a kernel of 17 points load into one of 7. Metadata is no
    entry of the state dict, so that older versions load new files and new ones load theirs.
    """

    def _grid(self) -> dict[str, Any]:
        return {
            "dilated_kernel_size": tuple(self.dilated_kernel_size),
            "version": self.version,
            "axes of the rows of P": tuple(self._row_axes()),
        }

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if isinstance(metadata, dict):
            metadata[_KEY] = self._grid()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved, own = local_metadata.get(_KEY), self._grid()
        if isinstance(saved, dict) and prefix + "P" in state_dict:
            _warn_once(type(self).__name__, prefix[:-1], saved, own, error_msgs)
            if self.SIG is None and saved.get("version") == self.version:
                # Of a layer that was rounded: it has widths of before, which it does not use.
                state_dict.pop(prefix + "SIG", None)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


class _Told(threading.local):
    """What the user was told in the present load of this thread."""

    #: The load's list of errors, which all of its modules share.
    load: list[str] | None = None
    texts: frozenset[str] = frozenset()


_told = _Told()


def _warn_once(
    layer: str, name: str, saved: dict[str, Any], own: dict[str, Any], load: list[str]
) -> None:
    """Warns of each difference once a call of ``load_state_dict``."""
    if _told.load is not load:
        _told.load, _told.texts = load, frozenset()
    # Another version may have other axes: its name says so.
    keys = [key for key in own if key in saved and tuple(saved[key]) != tuple(own[key])]
    if "version" in keys and "axes of the rows of P" in keys:
        keys.remove("axes of the rows of P")
    if not keys:
        return
    theirs, ours = (", ".join(f"{key}={each[key]}" for key in keys) for each in (saved, own))
    text = f"a state dict of {theirs} is loaded into a layer of {ours}"
    if text not in _told.texts:
        _told.texts |= {text}
        where = f"{layer} {name}" if name else layer
        text = f"{where}: {text}: the positions mean another kernel"
        if keys == ["version"]:
            text += f". Set its version = {saved['version']!r} first; DCLS.round_ does so, too"
        warnings.warn(text, UserWarning, _outside())


def _outside() -> int:
    """Returns the ``stacklevel`` of the first caller outside of torch and this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in ("torch", "DCLS"):
            break
        level, frame = level + 1, frame.f_back
    return level
