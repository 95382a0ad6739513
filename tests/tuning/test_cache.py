"""Files of measured choices: whole or not there, whatever the disk does."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from DCLS.tuning import cache
from DCLS.tuning.cache import Cache

KEY = {"device": "GPU", "capability": [9, 0], "sigma_min": 0.27, "bias": True, "width": None}
SECONDS = {"conv": 2e-3, "direct": 1e-3}


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert Cache(folder).load(KEY) is None
    assert not folder.exists()
    assert Cache(folder).store(KEY, "direct", SECONDS)
    assert Cache(folder).load(KEY) == ("direct", SECONDS)
    assert Cache(folder).store(KEY, "conv", {"conv": 1.0, "direct": math.inf})
    assert Cache(folder).load(KEY) == ("conv", {"conv": 1.0, "direct": math.inf})
    text = only_file(folder).read_text()
    assert "Infinity" not in text  # not JSON
    assert json.loads(text)["key"] == KEY


@pytest.mark.parametrize("name", KEY)
def test_another_key_is_another_file(tmp_path: Path, name: str) -> None:
    files = Cache(tmp_path)
    files.store(KEY, "direct", SECONDS)
    assert files.load({**KEY, name: "other"}) is None
    assert files.load({k: v for k, v in KEY.items() if k != name}) is None


def edited(**changes: Any) -> bytes:
    content = {"format": cache.FORMAT, "key": KEY, "method": "direct", "seconds": SECONDS}
    return json.dumps({**content, **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        edited()[:-3],
        edited(format=cache.FORMAT + 1),
        edited(key={**KEY, "device": "another with the same hash"}),
        edited(method="other"),
        edited(method=None),
        edited(seconds=[1, 2]),
        edited(seconds={"direct": "fast"}),
        edited(seconds=None),
        edited(seconds={"direct": 10**400}),
    ],
)
def test_broken_files_and_other_versions_are_ignored_and_replaced(
    tmp_path: Path, content: bytes
) -> None:
    files = Cache(tmp_path)
    files.store(KEY, "direct", SECONDS)
    file = only_file(tmp_path)
    file.write_bytes(content)
    assert files.load(KEY) is None
    assert files.store(KEY, "direct", SECONDS)
    assert files.load(KEY) == ("direct", SECONDS)
    assert only_file(tmp_path) == file


def test_a_folder_in_the_place_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = Cache(tmp_path)
    files.store(KEY, "direct", SECONDS)
    file = only_file(tmp_path)
    file.unlink()
    file.mkdir()
    assert files.load(KEY) is None
    assert not files.store(KEY, "direct", SECONDS)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # no remains


def fail_with(monkeypatch: pytest.MonkeyPatch, function: str, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    module, name = {"mkdir": (Path, "mkdir"), "replace": (os, "replace")}.get(
        function, (cache.tempfile, function)
    )
    monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize(
    ("function", "code"),
    [("mkdir", errno.EROFS), ("mkstemp", errno.EACCES), ("replace", errno.EDQUOT)],
)
def test_what_cannot_be_written_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    function: str,
    code: int,
) -> None:
    fail_with(monkeypatch, function, code)
    files = Cache(tmp_path)
    with caplog.at_level(logging.WARNING, logger="DCLS"):
        assert not files.store(KEY, "direct", SECONDS)
        assert not files.store({**KEY, "bias": False}, "direct", SECONDS)
    (record,) = caplog.records
    assert os.strerror(code) in record.getMessage()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A write that ends in the middle leaves nothing, and the file before it stays."""
    files = Cache(tmp_path)
    files.store(KEY, "direct", SECONDS)
    full = os.open("/dev/full", os.O_WRONLY)
    real = cache.tempfile.mkstemp

    def on_the_full_disk(**kwargs: Any) -> tuple[int, str]:
        handle, name = real(**kwargs)
        os.dup2(full, handle)
        return handle, name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.tempfile, "mkstemp", on_the_full_disk)
        assert not files.store(KEY, "conv", SECONDS)
    os.close(full)
    assert "No space left" in caplog.text
    assert files.load(KEY) == ("direct", SECONDS)
    assert only_file(tmp_path).suffix == ".json"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_home(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o500)
    assert not Cache(tmp_path / "dcls").store(KEY, "direct", SECONDS)
    tmp_path.chmod(0o700)
    assert "Permission denied" in caplog.text


def write_often(folder: Path, method: str, times: int) -> None:
    files = Cache(folder)
    for _ in range(times):
        assert files.store(KEY, method, SECONDS)


WRITER = """
import sys
from pathlib import Path
from DCLS.tuning.cache import Cache
files = Cache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(300):
    assert files.store({key!r}, sys.argv[2], {seconds!r})
"""


def test_processes_that_write_at_once(tmp_path: Path) -> None:
    """Whoever reads meanwhile gets the whole of what one of them wrote."""
    Cache(tmp_path).store(KEY, "conv", SECONDS)
    code = WRITER.format(key=KEY, seconds=SECONDS)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), method],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for method in ("direct", "conv")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen = set()
    while any(writer.poll() is None for writer in writers):
        loaded = Cache(tmp_path).load(KEY)
        assert loaded is not None
        assert loaded[1] == SECONDS
        seen.add(loaded[0])
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert seen <= {"direct", "conv"}
    assert only_file(tmp_path).suffix == ".json"


def test_threads_that_write_at_once(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=write_often, args=(tmp_path, method, 50))
        for method in ("direct", "conv")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Cache(tmp_path).load(KEY) is not None
    assert only_file(tmp_path).suffix == ".json"


def test_no_folder_no_files(caplog: pytest.LogCaptureFixture) -> None:
    assert not Cache(None).store(KEY, "direct", SECONDS)
    assert Cache(None).load(KEY) is None
    assert Cache(None).clear() == 0
    assert not caplog.records


def test_clear_deletes_the_choices_and_nothing_else(tmp_path: Path) -> None:
    files = Cache(tmp_path)
    files.store(KEY, "direct", SECONDS)
    files.store({}, "direct", SECONDS)
    (tmp_path / "notes.txt").write_text("mine")
    assert files.clear() == 2
    assert only_file(tmp_path).name == "notes.txt"
    assert Cache(tmp_path / "none").clear() == 0


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DCLS_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a/tuning"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/dcls/tuning"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/dcls/tuning"),
        ({"DCLS_CACHE_DIR": "", "HOME": "/h"}, "/h/.cache/dcls/tuning"),
    ],
)
def test_where_files_are(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("DCLS_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.folder() == Path(expected)


def test_nobody_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DCLS_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert cache.folder() is None
