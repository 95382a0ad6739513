"""Where ``dcls demo`` writes its picture, and what it refuses to write to."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

from commands import error_line, no_training  # noqa: F401  # a fixture

from DCLS import cli
from DCLS.demo import picture, train


@pytest.mark.usefixtures("no_training")
def test_output_must_be_writable(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for path, complaint in (
        (tmp_path / "missing" / "picture.png", "there is no directory"),
        (tmp_path / "folder.png", "cannot be written: Is a directory"),
        (tmp_path / ("x" * 300 + ".png"), "cannot be written: File name too long"),
    ):
        line = error_line(capsys, "demo", "--output", str(path))
        assert f"argument --output: got {str(path)!r}" in line
        assert complaint in line


@pytest.mark.usefixtures("no_training")
def test_checking_the_output_changes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.write_bytes(b"a picture")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for path in (old, new):
        error_line(capsys, "demo", "--output", str(path))
    assert old.read_bytes() == b"a picture"
    assert not new.exists()


@pytest.mark.usefixtures("no_training")
def test_special_files_are_refused_and_stay(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fifo, full, bound = (tmp_path / f"{name}.png" for name in ("fifo", "full", "bound"))
    os.mkfifo(fifo)
    full.symlink_to("/dev/full")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(bound))
        for path in (fifo, full, bound):
            line = error_line(capsys, "demo", "--output", str(path))
            assert line.endswith(f"argument --output: got {str(path)!r}, which is no regular file")
    assert fifo.is_fifo()
    assert full.is_symlink()
    assert bound.is_socket()
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    assert "cannot be written" in error_line(capsys, "demo", "--output", str(loop))
    assert loop.is_symlink()


@pytest.mark.usefixtures("no_training")
def test_a_dangling_link_stays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, target = tmp_path / "link.png", tmp_path / "target.png"
    link.symlink_to(target.name)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    error_line(capsys, "demo", "--output", str(link))
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link], "nothing is left behind"
    link.unlink()
    link.symlink_to(tmp_path / "missing" / "target.png")
    assert "there is no directory" in error_line(capsys, "demo", "--output", str(link))
    assert link.is_symlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.usefixtures("no_training")
def test_without_permission(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    locked = tmp_path / "locked.png"
    locked.write_bytes(b"a picture")
    locked.chmod(0o400)
    assert "Permission denied" in error_line(capsys, "demo", "--output", str(locked))
    tmp_path.chmod(0o500)
    assert "Permission denied" in error_line(capsys, "demo", "--output", str(tmp_path / "new.png"))
    tmp_path.chmod(0o700)


def test_the_picture_replaces_what_is_there_only_when_it_is_whole(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    target.write_bytes(b"a picture")
    target.chmod(0o640)
    link.symlink_to(target)

    class Drawn:
        problem: OSError | None = OSError(errno.ENOSPC, "No space left on device")

        def savefig(self, path: Path) -> None:
            path.write_bytes(b"half")
            if self.problem is not None:
                raise self.problem

    monkeypatch.setattr(picture, "draw", lambda *_: Drawn())
    monkeypatch.setattr(train, "run", lambda one: picture.save(one.make_task(), [], one))
    command = ["demo", "--output", str(link)]
    assert cli.main(command) == 1
    expected = f"dcls demo: error: {link} cannot be written: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == expected
    assert target.read_bytes() == b"a picture"
    monkeypatch.setattr(Drawn, "problem", None)
    assert cli.main(command) == 0
    assert link.is_symlink()
    assert target.read_bytes() == b"half"
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(tmp_path.iterdir()) == [link, target]
