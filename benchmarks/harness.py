"""Runs whole commands against each other and says what came out.

A candidate is a command that prints one JSON object as its last line. Candidates are warmed up, then run in
turn (A B A B ...), each in a process group of its own, under a time limit, while the memory of its process
tree is sampled. Everything is kept as JSON under `benchmarks/results/`; tables are Markdown.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from benchmarks.child import LAUNCHED_AT, SCRATCH, SEED

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MEMORY_INTERVAL_S = 0.5
MEMORY_SHARE = 0.02  # of the time at most: looking at many large processes takes long
BYTES_PER_MB = 1e6


@dataclass(frozen=True)
class Candidate:
    """One of the commands to compare."""

    name: str
    argv: tuple[str, ...]
    cold_caches: bool = False
    """Give every run empty directories for compiled code (Numba, torch.compile)."""
    terminal: bool = False
    """Give it a pseudo-terminal to write to, so that it draws as for a person."""


@dataclass(frozen=True)
class Run:
    """What one run of one candidate gave."""

    candidate: str
    repeat: int
    wall_s: float
    load_before: float
    pss_peak_mb: float
    pss_median_mb: float
    figures: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Spread:
    """Median and range of one figure over the runs of one candidate; infinite where a run got nowhere."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Column:
    """One figure as a column of a table."""

    figure: str
    label: str
    digits: int = 0
    better: Literal["higher", "lower", ""] = ""
    """With a direction, the column is followed by the ratio to the best peer (above 1: better than it)."""


class MemorySampler:
    """Samples the proportional set size (PSS) of a process tree until told to stop (on Linux).

    PSS divides each shared page among its users, so that the sum over the tree counts it once.
    """

    def __init__(self, pid: int, interval_s: float = MEMORY_INTERVAL_S) -> None:
        self.samples_mb: list[float] = []
        self._pid = pid
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        took_s = 0.0
        while not self._stopped.wait(max(self._interval_s, took_s / MEMORY_SHARE)):
            begin_s = time.perf_counter()
            pss_mb = tree_pss_mb(self._pid)
            took_s = time.perf_counter() - begin_s
            if pss_mb > 0:
                self.samples_mb.append(pss_mb)

    @property
    def peak_mb(self) -> float:
        """The largest sample."""
        return max(self.samples_mb, default=0.0)

    @property
    def median_mb(self) -> float:
        """The median of the second half of the samples, when the tree is up."""
        return statistics.median(self.samples_mb[len(self.samples_mb) // 2 :] or [0.0])


def tree_pss_mb(pid: int) -> float:
    """Sum of the PSS of a process and all its descendants, in MB (10^6 bytes)."""
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(_pss_bytes(process.pid) for process in tree) / BYTES_PER_MB


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it ended meanwhile, or this is not Linux
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def run_once(candidate: Candidate, repeat: int, timeout_s: float) -> Run:
    """Run a candidate to its end or the time limit. A failure is a `Run` with an `error`, no exception."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as scratch:
        out_path, error_path = Path(scratch, "stdout"), Path(scratch, "stderr")
        environment = _environment(candidate, repeat, Path(scratch))
        load_before = _load()
        with _output(candidate, out_path, error_path) as (out, error):
            launched = time.monotonic()
            environment[LAUNCHED_AT] = repr(launched)
            process = subprocess.Popen(
                candidate.argv, cwd=ROOT, env=environment, stdout=out, stderr=error, start_new_session=True
            )
            with MemorySampler(process.pid) as memory:
                timed_out = _wait(process, timeout_s)
                wall_s = time.monotonic() - launched
        figures = {} if timed_out else _last_json(out_path)
        message = "" if figures else _failure(process.returncode, timeout_s if timed_out else None, error_path)
    return Run(candidate.name, repeat, wall_s, load_before, memory.peak_mb, memory.median_mb, figures, error=message)


@contextlib.contextmanager
def _output(candidate: Candidate, out_path: Path, error_path: Path) -> Iterator[tuple[int, int]]:
    """Descriptors for the output and the errors of a run: two files, or a terminal copied to the first."""
    with out_path.open("wb") as out, error_path.open("wb") as error:
        if not candidate.terminal:
            yield out.fileno(), error.fileno()
            return
        ours, theirs = os.openpty()
        thread = threading.Thread(target=_drain, args=(ours, out.fileno()), daemon=True)
        thread.start()
        try:
            yield theirs, theirs
        finally:
            os.close(theirs)
            thread.join()
            os.close(ours)


def _drain(source: int, target: int) -> None:
    with contextlib.suppress(OSError):  # the last writer closed the terminal
        while data := os.read(source, 65536):
            os.write(target, data)


def _environment(candidate: Candidate, repeat: int, scratch: Path) -> dict[str, str]:
    environment = {**os.environ, SEED: str(max(repeat, 0)), SCRATCH: str(scratch), "PYTHONUNBUFFERED": "1"}
    if candidate.terminal:
        environment.update(TERM="xterm-256color", COLUMNS="120", LINES="40")
    if candidate.cold_caches:
        environment["NUMBA_CACHE_DIR"] = str(scratch / "numba")
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "inductor")
    return environment


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait for the end of the process, then end whatever is left of its group. True if it ran out of time."""
    timed_out = False
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    with contextlib.suppress(ProcessLookupError):  # nothing was left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return timed_out


def _last_json(path: Path) -> dict[str, Any]:
    for line in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            value = json.loads(line[line.find("{") :])  # a terminal may have control sequences before it
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}


def _failure(exit_code: int, timeout_s: float | None, error_path: Path) -> str:
    what = f"exit code {exit_code}, no JSON line" if timeout_s is None else f"not finished after {timeout_s:.0f} s"
    tail = error_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
    text = "\n".join([what, *tail])
    for folder in (
        str(ROOT),
        str(Path.home()),
        sys.base_prefix,
    ):  # results are published: no paths of this machine
        text = text.replace(folder, "...")
    return text


def _load() -> float:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0


def alternate(candidates: Sequence[Candidate], repeats: int, timeout_s: float, warmups: int = 0) -> list[Run]:
    """All runs in the order A B A B ..., after `warmups` rounds that are not kept; progress to stderr."""
    runs: list[Run] = []
    for repeat in range(-warmups, repeats):
        for candidate in candidates:
            run = run_once(candidate, repeat, timeout_s)
            say(_progress(run))
            if repeat >= 0:
                runs.append(run)
    return runs


def _progress(run: Run) -> str:
    label = "warm-up" if run.repeat < 0 else f"run {run.repeat + 1}"
    numbers = {key: value for key, value in run.figures.items() if isinstance(value, int | float)}
    figures = run.error or ", ".join(f"{key} {value:,.6g}" for key, value in numbers.items())
    return f"{run.candidate} {label} ({run.wall_s:.1f} s, {run.pss_peak_mb:.0f} MB): {figures}"


def say(text: str) -> None:
    """Progress, apart from the tables on stdout."""
    print(text, file=sys.stderr, flush=True)


def spread(runs: Iterable[Run], figure: str) -> Spread | None:
    """Median and range of a figure over the runs that did not fail; None where none has it."""
    values = [_value(run, figure) for run in runs if not run.error]
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.median(known), min(known), max(known), len(known))


def _value(run: Run, figure: str) -> float | None:
    """A figure of a run. The child's `null` means "not reached", which is infinitely late."""
    fields = {"wall_s": run.wall_s, "pss_peak_mb": run.pss_peak_mb, "pss_median_mb": run.pss_median_mb}
    figures = {**fields, **run.figures}
    if figure not in figures:
        return None
    return math.inf if figures[figure] is None else float(figures[figure])


def by_candidate(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each candidate, in order of first appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.candidate, []).append(run)
    return groups


def table(runs: Sequence[Run], columns: Sequence[Column], ours: str = "millrace") -> str:
    """A Markdown table, one row per candidate; candidates whose name starts with `ours` are not peers."""
    groups = by_candidate(runs)
    header = ["candidate"]
    for column in columns:
        header += [column.label, "x best peer"] if column.better else [column.label]
    rows = [header, ["---"] * len(header)]
    best = {column.figure: _best_peer(groups, column, ours) for column in columns if column.better}
    for name, group in groups.items():
        failed = sum(bool(run.error) for run in group)
        cells = [name + (f" ({failed} of {len(group)} failed)" if failed else "")]
        for column in columns:
            cells += _cells(spread(group, column.figure), column, best.get(column.figure))
        rows.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _best_peer(groups: Mapping[str, Sequence[Run]], column: Column, ours: str) -> float | None:
    peers = [spread(group, column.figure) for name, group in groups.items() if not name.startswith(ours)]
    medians = [peer.median for peer in peers if peer is not None]
    return (max if column.better == "higher" else min)(medians, default=None)


def _cells(value: Spread | None, column: Column, best: float | None) -> list[str]:
    if value is None:
        return ["-", "-"] if column.better else ["-"]
    median, low, high = (_number(x, column.digits) for x in (value.median, value.low, value.high))
    cells = [f"{median} [{low}..{high}]" if value.count > 1 else f"{median} (1x)"]
    if column.better:
        cells.append(_ratio(value.median, column, best))
    return cells


def _ratio(median: float, column: Column, best: float | None) -> str:
    if not best or not median or math.isinf(best) or math.isinf(median):
        return "-"
    return f"{median / best if column.better == 'higher' else best / median:.2f}"


def _number(value: float, digits: int) -> str:
    return "not reached" if math.isinf(value) else f"{value:,.{digits}f}"


def machine() -> dict[str, Any]:
    """The machine, in words and numbers that name no place."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load": _load(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def machine_line(facts: Mapping[str, Any]) -> str:
    """The machine as one line above a table."""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, {facts['system']}, "
        f"Python {facts['python']}, load at start {facts['load']}"
    )


def save(name: str, runs: Sequence[Run], **about: Any) -> Path:
    """Keep all runs with the machine as `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    facts = {
        "name": name,
        "when": time.strftime("%Y-%m-%d %H:%M"),
        **about,
        "runs": [asdict(run) for run in runs],
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return path


def load(name: str) -> tuple[list[Run], dict[str, Any]]:
    """The runs kept under a name, and what was said about them."""
    facts = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return [Run(**run) for run in facts.pop("runs")], facts


def measure(
    name: str,
    candidates: Sequence[Candidate],
    columns: Sequence[Column],
    repeats: int,
    timeout_s: float,
    warmups: int = 0,
) -> list[Run]:
    """Run, keep and print: the whole of an ordinary benchmark."""
    facts = machine()
    runs = alternate(candidates, repeats, timeout_s, warmups)
    save(name, runs, machine=facts)
    print(f"{name}: {machine_line(facts)}\n\n{table(runs, columns)}\n", flush=True)
    return runs
