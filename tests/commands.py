"""What the tests of the command ``dcls`` share."""

from __future__ import annotations

import pytest

from DCLS import cli
from DCLS.demo import train


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a test fail that gets as far as the training."""

    def run(*_: object, **__: object) -> None:
        pytest.fail("the training started")

    monkeypatch.setattr(train, "run", run)


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must fail with exit code 2 and one line on stderr; returns the line."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err.rstrip("\n")
