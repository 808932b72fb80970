"""The stages of loading a policy, each under a deadline, in a process that may hang or die without harm."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from millrace import system
from millrace.doctor.findings import Finding
from millrace.doctor.loading import STAGES, TRUSTED, without_env

POLL_S = 0.1
LAST_WORDS_S = 2.0
STACK_FRAME = re.compile(r'File "(.+)", line (\d+) in (.+)')


def walk(path: Path, env: str, deadline_s: float, trust: bool = False) -> Iterator[Finding]:
    """What each stage found, as it finishes. An environment that hangs or kills is survived, and the rest follows."""
    names = list(STAGES)
    while names:
        child = Child(path, env, trust, names)
        try:
            while names and (finding := child.finding(deadline_s)) is not None:
                names.remove(finding.subject)
                yield finding
            ended = child.end()
        finally:
            child.kill()
        if not names or not ended:
            return
        lost = names.pop(0)
        yield _lost(lost, ended, path)
        if lost != "environment":
            return


def _lost(stage: str, ended: str, path: Path) -> Finding:
    if stage == "environment":
        return Finding("error", stage, f"its process {ended}", without_env(path), exit_code=3)
    return Finding("error", stage, f"its process {ended}", "--deadline-s gives more time, if that is all", exit_code=4)


class Child:
    """The process of `millrace.doctor.child`."""

    def __init__(self, path: Path, env: str, trust: bool, stages: list[str]) -> None:
        given = [str(path), env, TRUSTED if trust else "", *stages]
        command = [sys.executable, "-X", "faulthandler", "-m", "millrace.doctor.child", *given]
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - until killed
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, encoding="utf-8"
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._ended = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)

    def finding(self, deadline_s: float) -> Finding | None:
        """The next one; None where the process ends, or takes longer than that."""
        until_s = time.monotonic() + deadline_s
        while time.monotonic() < until_s:
            has_ended = self._process.poll() is not None
            if has_ended:
                self._reader.join(LAST_WORDS_S)
            with contextlib.suppress(queue.Empty):
                return Finding(**json.loads(self._lines.get(timeout=POLL_S)))
            if has_ended:
                return None
        self._ended = f"did not finish within {deadline_s:g} s"
        return None

    def end(self) -> str:
        """Empty where it ended well; else how it ended, and where in the code if it told."""
        code = self._process.poll()
        if self._ended:
            system.ask_for_stack(self._process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LAST_WORDS_S)
        elif code is None or code == 0:
            return ""
        else:
            self._ended = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        self._errors.seek(0)
        return self._ended + _place(self._errors.read())

    def kill(self) -> None:
        """End it and all that it started."""
        if self._process.poll() is None:
            for pid in reversed(system.process_tree(self._process.pid)):
                system.kill(pid)
        self._process.wait()
        self._reader.join(LAST_WORDS_S)
        self._errors.close()


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _place(errors: str) -> str:
    """Where the main thread was, from the stack that Python prints on its way out; else its last line."""
    _, _, stack = errors.rpartition("Current thread")
    frame = STACK_FRAME.search(stack)
    if frame:
        return f", in {frame[3]} ({Path(frame[1]).name}, line {frame[2]})"
    lines = errors.strip().splitlines()
    return f"; it said last: {lines[-1]}" if lines else ""
