"""Damaged and hostile policy files: each refused in one line or loaded, without code, crash or much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_export import SOME, made

import millrace
from millrace.deploy.archive import write_archive
from millrace.deploy.onnx_export import export_onnx

KINDS = ("dense", "maps and masks", "gru")
MAX_MEMORY_MB = 1000
TRAP = "module_that_a_file_names"


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> list[str]:
    directory, names = tmp_path_factory.mktemp("whole"), []
    for index, kind in enumerate(KINDS):
        record, policy = made(kind)
        archive, graph = directory / f"{index}.millrace", directory / f"{index}.onnx"
        write_archive(archive, record.to_json(), {k: x.numpy() for k, x in policy.state_dict().items()}, 0, "0")
        export_onnx(graph, record, policy, SOME)
        names += [str(archive), str(graph)]
    return names


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_hostile_files_are_refused_or_loaded_and_do_nothing_else(count, whole_files, tmp_path):
    source = str(Path(millrace.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hostile.py")), str(tmp_path), str(count), "0", *whole_files],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert "FINDING" not in counts, done.stdout
    assert len(done.stdout.splitlines()) == 1, "a library wrote something: " + done.stdout
    assert counts["refused"] + counts["loaded"] == count
    assert counts["refused"] > count / 2
    assert counts["peak_mb"] < MAX_MEMORY_MB


def test_code_that_a_file_names_would_be_seen(tmp_path):
    """The watch of the test above does see an import, a process and a file that is written."""
    script = (
        "import sys; sys.path.insert(0, {folder!r}); import hostile, subprocess\n"
        "hostile.WRITABLE = {folder!r}\nhostile.watch()\n{deed}"
    )
    for deed in (f"import {TRAP}", "subprocess.run(['true'])", f"open({str(tmp_path / 'x')!r}, 'w')"):
        code = script.format(folder=str(Path(__file__).parent), deed=deed)
        source = str(Path(millrace.__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True
        )
        assert done.returncode == 9, done.stderr
        assert done.stdout.startswith("FORBIDDEN")
