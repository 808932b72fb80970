"""Runs beside each other, each in a process of its own: a crash of one cannot hurt the others."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator

import cloudpickle

from millrace import system
from millrace.errors import ConfigError, MillraceError
from millrace.experiments.jobs import Job
from millrace.experiments.records import RunRecord, read_progress
from millrace.stop_signal import INTERRUPTED_EXIT_CODE, STOP_GRACE_S, StopSignal

POLL_S = 0.1
SHOW_S = 0.5
STOP_TIMEOUT_S = STOP_GRACE_S + 20.0
"""From asking a run to stop to ending its process: the grace of its own, and time to save."""
OUTPUT = "output.txt"
BOOTSTRAP = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from millrace.experiments.child import main; main()"
)


class Child:
    """The process of one job; what it prints goes to `output.txt` in the run directory.

    Raises:
        ConfigError: the user's callable or network cannot be sent. MillraceError: the directory cannot be written.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        payload = pickle.dumps(sys.path) + _pickled(job)
        try:
            job.run_dir.mkdir(parents=True, exist_ok=True)
            with open(job.run_dir / OUTPUT, "ab") as output:
                command = [sys.executable, "-c", BOOTSTRAP, str(job.run_dir)]  # the last word is for people who look
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=output, stderr=output, **system.out_of_ctrl_c()
                )
        except OSError as error:
            raise MillraceError(f"cannot start a run in {job.run_dir}: {error.strerror}; choose --run-dir") from None
        assert self._process.stdin is not None
        self._line = self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its end is seen by whoever polls
            self._line.write(payload)
            self._line.flush()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Let it end at the next update and save."""
        with contextlib.suppress(BrokenPipeError):
            self._line.close()

    def kill(self) -> None:
        self._process.kill()

    def progress(self) -> RunRecord:
        """How far it is."""
        return read_progress(self.job.config.seed, self.job.run_dir)

    def record(self) -> RunRecord:
        """What came of it, once it has ended."""
        self.ask_to_stop()
        code, record = self._process.wait(), self.job.record()
        if code in (0, INTERRUPTED_EXIT_CODE):
            return record
        error = self._last_words() if code > 0 else f"its process was killed by signal {-code}"
        return dataclasses.replace(record, state="failed", error=error, exit_code=code if code > 0 else 1)

    def _last_words(self) -> str:
        lines = (self.job.run_dir / OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def _pickled(job: Job) -> bytes:
    try:
        content: bytes = cloudpickle.dumps(job)
        return content
    except Exception as error:
        raise ConfigError(
            f"the environment factory or network cannot be sent to a process of its own ({error}); "
            "make it inside the function, or name one that can be imported: module:function"
        ) from error


class ParallelRuns:
    """At most `parallel` jobs at a time, in their order. Ctrl-C or SIGTERM stops those at work, which save, and starts
    no more; a second one ends them at once.
    """

    def __init__(self, jobs: list[Job], parallel: int) -> None:
        self._waiting = list(jobs)
        self._parallel = parallel
        self._children: list[Child] = []
        self._stop_deadline_s = float("inf")
        self._signal = StopSignal(lambda _: None, self._kill)
        self.interrupted = False

    def __enter__(self) -> ParallelRuns:
        self._signal.install()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for child in self._children:
            child.record()
        self._signal.restore()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def progress(self) -> dict[str, RunRecord]:
        """How far those at work are, by name."""
        return {child.job.name: child.progress() for child in self._children}

    def watch(self) -> Iterator[tuple[Job, RunRecord] | None]:
        """Each run as it ends; None from time to time, so that progress can be shown."""
        while self._children or self._waiting:
            self._start()
            shown_s = time.monotonic()
            while not (ended := self._ended()) and time.monotonic() - shown_s < SHOW_S:
                self._obey_signal()
                time.sleep(POLL_S)
            yield from [(child.job, child.record()) for child in ended]
            yield None

    def _start(self) -> None:
        while self._waiting and len(self._children) < self._parallel:
            self._children.append(Child(self._waiting[0]))
            del self._waiting[0]

    def _ended(self) -> list[Child]:
        ended = [child for child in self._children if child.exit_code is not None]
        self._children = [child for child in self._children if child not in ended]
        return ended

    def _obey_signal(self) -> None:
        if not self._signal.was_given:
            return
        if not self.interrupted:
            self.interrupted, self._stop_deadline_s = True, time.monotonic() + STOP_TIMEOUT_S
            self._waiting.clear()
            for child in self._children:
                child.ask_to_stop()
        if time.monotonic() > self._stop_deadline_s:
            self._kill()

    def _kill(self) -> None:
        for child in self._children:
            child.kill()
