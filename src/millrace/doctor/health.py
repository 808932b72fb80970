"""What holds a run back, from the figures that it wrote; it may still be at work."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace import system
from millrace.config import Config
from millrace.doctor.findings import Finding
from millrace.errors import ConfigError, WorkerError
from millrace.metrics.catalogue import CATALOGUE
from millrace.metrics.rows import read_rows
from millrace.metrics.sinks import Row
from millrace.rundir import RunDirectory

FEWEST_ROWS = 5
SMOOTHED_ROWS = 5  # a figure that leaves its range for two rows of five has not left it
BEGINNING = 0.1  # part of training in which a value or a policy may know nothing yet
FEWEST_UPDATES = 100
EARLY = 0.5
LEARNED_VALUE = 0.3
VARIED_TARGETS = 0.05  # of their mean: in a game that is mastered all are alike, and there is nothing to explain
SAME_ENTROPY = 0.01
IMPROVED_RETURN = 0.1
LOOP_RESTARTS = 3
NEARLY_ALL_MEMORY = 0.8
GROWN, GROWN_MB = 1.5, 100.0
SILENT_S, SILENT_ROWS = 60.0, 20
LOCK_STEP_WAIT = 0.3
COMPLAINTS = {
    "share_learner_wait": "starved learner",
    "share_collector_wait": "starved collectors",
    "share_trainer_other": "busy trainer",
    "effective_sample_share": "stale data",
    "kl": "large steps",
    "clip_share": "large steps",
    "kl_proximal": "large steps",
    "ratio_tail_share": "stale data",
}
SPIKY = ("kl", "clip_share", "kl_proximal")  # steps that are too large now and then undo what the others learned
COUNTERS = {
    "skipped_steps": "not finite",
    "skipped_updates": "skipped updates",
    "bad_values": "bad values",
    "stale_rollouts": "stale data",
}


@dataclass(frozen=True)
class RunFigures:
    """What a run's directory tells.

    Attributes:
        status: empty where there is none.
        crashes: the newest last.
        is_live: somebody is training in it.
        silent_s: since the last row was written.
    """

    path: Path
    rows: list[Row]
    config: Config
    status: dict[str, Any]
    crashes: list[tuple[Path, dict[str, Any]]]
    is_live: bool
    silent_s: float

    @staticmethod
    def read(path: Path) -> RunFigures:
        """From the files. What cannot be read is as if it were not there: others look after the files."""
        directory = RunDirectory(path)
        figures = path / "metrics.jsonl"
        try:
            config = directory.read_config()
        except ConfigError:
            config = Config()
        return RunFigures(
            path,
            read_rows(path),
            config,
            _json(path / "status.json"),
            [
                (file, _json(file))
                for file in sorted((path / "crashes").glob("*.json"), key=lambda f: f.stat().st_mtime)
            ],
            directory.lock.is_held(),
            time.time() - figures.stat().st_mtime if figures.exists() else 0.0,
        )

    @property
    def tail(self) -> list[Row]:
        """The rows that tell how it is now: a fifth of them, 5 to 200."""
        return self.rows[-min(max(FEWEST_ROWS, len(self.rows) // 5), 200) :]

    @property
    def progress(self) -> float:
        return self.progress_at(self.rows[-1])

    def progress_at(self, row: Row) -> float:
        """How much of the steps were behind it, 0..1."""
        return float(row["env_steps"]) / self.config.total_env_steps

    @property
    def is_young(self) -> bool:
        """Too young for a policy to know anything."""
        return self.progress < BEGINNING or self.rows[-1].get("updates", 0) < FEWEST_UPDATES

    def now(self, name: str) -> float:
        """The median over the last rows; nan where the figure is unknown."""
        return median(self.tail, name)

    def smoothed(self, name: str) -> list[tuple[Row, float]]:
        """Each row with the median of the figure over the rows up to it."""
        known = [row for row in self.rows if is_number(row.get(name))]
        return [(row, median(known[max(0, i - SMOOTHED_ROWS + 1) : i + 1], name)) for i, row in enumerate(known)]

    def outside_since(self, name: str) -> Row | None:
        """The row since which a figure is outside its healthy range without a break; None where it is inside."""
        metric, since = CATALOGUE[name], None
        for row, value in reversed(self.smoothed(name)):
            if not metric.side(value):
                break
            since = row
        return since


def examine_run(path: Path) -> Iterator[Finding]:
    """What holds it back, or one sentence that nothing does; and what limits its speed."""
    run = RunFigures.read(path)
    found = [*_state(run), *_crashes(run)]
    if len(run.rows) < FEWEST_ROWS:
        yield from found
        yield Finding("note", "health", f"{len(run.rows)} rows of figures are too few to judge it by")
        return
    for judge in (_ranges, _lock_step, _value, _entropy, _counters, _memory):
        found += judge(run)
    yield from found
    if all(finding.level == "note" for finding in found):
        yield Finding("ok", "health", f"nothing holds it back: {speed(run)}")
    else:
        yield Finding("note", "speed", speed(run))


def speed(run: RunFigures) -> str:
    """How fast it is, and what of its parts limits that."""
    learn, wait = run.now("share_learn"), run.now("share_learner_wait")
    step, inference = run.now("share_step"), run.now("share_inference")
    rate = f"{run.now('steps_per_second'):,.0f} steps/s"
    if any(math.isnan(share) for share in (learn, wait, step, inference)):
        return rate
    if learn >= wait:
        return f"{rate}, limited by learning, {learn:.0%} of the trainer's time"
    part, share = ("environment steps", step) if step >= inference else ("inference", inference)
    return f"{rate}, limited by {part}, {share:.0%} of the collectors' time"


def _state(run: RunFigures) -> Iterator[Finding]:
    state = run.status.get("state", "not started")
    if run.is_live and run.rows:
        gaps = [after["time_s"] - before["time_s"] for before, after in itertools.pairwise(run.tail)]
        usual_s = statistics.median(gaps) if gaps else 0.0
        if run.silent_s > max(SILENT_S, SILENT_ROWS * usual_s):
            what = f"it is at work and has written no figures for {run.silent_s:.0f} s"
            yield Finding(
                "warning", "state", what, "see `log.txt`; a lower --collect.step_timeout_s ends hanging steps"
            )
    elif state == "running" and not run.is_live:
        what = f"it was cut off: process {run.status.get('pid')} is gone and said nothing (killed, or out of memory)"
        yield Finding("warning", "state", what, f"millrace resume {run.path}")
    elif state == "worker failures" and not run.crashes:
        yield Finding("error", "state", "workers failed too often", "see `log.txt`", exit_code=WorkerError.exit_code)


def _ranges(run: RunFigures) -> Iterator[Finding]:
    """Figures whose healthy range holds at any time."""
    for name, subject in COMPLAINTS.items():
        value = upper_quartile(run.tail, name) if name in SPIKY else run.now(name)
        side = CATALOGUE[name].side(value)
        if side and not _is_serial_wait(run, name):
            what = (
                f"{name} is {value:.3g} or more in a quarter of the rows" if name in SPIKY else f"{name} = {value:.3g}"
            )
            yield complaint(run, name, subject, what, side)


def _is_serial_wait(run: RunFigures, name: str) -> bool:
    """Collecting in the same process counts as the learner's waiting, and starves nobody."""
    return name == "share_learner_wait" and run.config.collect.backend == "serial"


def complaint(run: RunFigures, name: str, subject: str, what: str, side: str) -> Finding:
    """A figure outside its healthy range, since when, and the setting to change."""
    metric, since = CATALOGUE[name], run.outside_since(name)
    text = f"{what}, {side} {metric.healthy[side == 'above']:g} {_since(since or run.tail[0])} ({metric.meaning})"
    return Finding("warning", subject, text, metric.remedy(side))


def _since(row: Row) -> str:
    return f"since step {int(row['env_steps']):,}"


def _lock_step(run: RunFigures) -> Iterator[Finding]:
    waits = run.now("share_learner_wait"), run.now("share_collector_wait")
    if run.config.collect.max_policy_lag == 0 and min(waits) > LOCK_STEP_WAIT:
        what = f"learner and collectors wait for each other, {waits[0]:.0%} and {waits[1]:.0%} of the time"
        yield Finding("note", "lock-step", what, "--max-policy-lag 1 lets them overlap")


def _value(run: RunFigures) -> Iterator[Finding]:
    """A value function that learned and lost it, or never learned; or returns that teach nothing."""
    if run.is_young:
        return
    returns = {row["episode_return"] for row in run.rows if is_number(row.get("episode_return"))}
    if len(returns) == 1:
        what = f"every row has episode_return = {returns.pop():g}: nothing that was tried made a difference"
        yield Finding("warning", "no reward", what, "docs/sparse-games.md: --rnd.coef, --imitate, a curriculum")
        return
    name, value = "explained_variance", run.now("explained_variance")
    side = CATALOGUE[name].side(value)
    spread = run.now("target_deviation") / max(abs(run.now("target_mean")), 1e-9)
    if not side or spread < VARIED_TARGETS:
        return
    best = max((smoothed for _, smoothed in run.smoothed(name)), default=math.nan)
    story = f"{name} fell from {best:.2g} to {value:.2g}" if best >= LEARNED_VALUE else f"{name} = {value:.2g}"
    yield complaint(run, name, "value collapse" if best >= LEARNED_VALUE else "value not learned", story, side)


def _entropy(run: RunFigures) -> Iterator[Finding]:
    """A policy that decided before it knew, or that never did."""
    value = run.now("entropy")
    since = run.outside_since("entropy")
    if since is not None and value >= 0:  # of continuous actions it may be negative
        if run.progress_at(since) < EARLY:
            yield complaint(run, "entropy", "entropy gone", f"entropy = {value:.2g}", "below")
        return
    first = median(run.rows[:FEWEST_ROWS], "entropy")
    is_same = abs(value - first) <= SAME_ENTROPY * abs(first)
    if is_same and not (run.is_young or run.rows[-1].get("imitation_steps") or _improved(run)):
        what = f"entropy = {value:.3g}, as at the beginning: the policy is still undecided"
        remedy = "lower --ppo.entropy_coef, raise --ppo.learning_rate; where rewards are rare see docs/sparse-games.md"
        yield Finding("warning", "entropy stuck", what, remedy)


def _improved(run: RunFigures) -> bool:
    name = "episode_return"
    first, now = median(run.rows[: max(1, len(run.rows) // 4)], name), run.now(name)
    return now > first + IMPROVED_RETURN * abs(first)


def _counters(run: RunFigures) -> Iterator[Finding]:
    """What should never happen: how often, since when, and whether it still does."""
    for name, subject in COUNTERS.items():
        counts = [(row, row.get(name, 0)) for row in run.rows]
        total = counts[-1][1]
        if not total:
            continue
        metric = CATALOGUE[name]
        first = next(row for row, count in counts if count)
        what = f"{name} = {total:,} {_since(first)} ({metric.meaning})"
        recent = [row.get(name, 0) for row in run.tail]
        rises = sum(after > before for before, after in itertools.pairwise(recent))
        if not rises:
            yield Finding("note", subject, f"{what}; none lately", metric.above)
        elif name == "skipped_steps" and rises == len(recent) - 1:
            yield Finding("error", subject, f"{what}: learning has stopped", metric.above)
        else:
            yield Finding("warning", subject, what, metric.above)


def _crashes(run: RunFigures) -> Iterator[Finding]:
    """Workers that were restarted: once and again, or in a loop."""
    counts = [(row["time_s"], int(row.get("restarts", 0))) for row in run.rows] or [(0.0, 0)]
    end_s, total = counts[-1]
    window_s = run.config.collect.restart_window_s
    lately = total - max((count for at_s, count in counts if at_s < end_s - window_s), default=0)
    gave_up = run.status.get("state") == "worker failures"
    if not total and not (gave_up and run.crashes):
        return
    last, remedy = _last_crash(run)
    if gave_up:
        what = f"workers failed until collect.max_restarts={run.config.collect.max_restarts} was used up"
    else:
        what = f"{lately} restarts of workers in the last {min(window_s, end_s):.0f} s, {total} in all"
    if gave_up or lately >= LOOP_RESTARTS:
        yield Finding("error", "crash loop", what + last, remedy, exit_code=WorkerError.exit_code)
    else:
        yield Finding("warning" if lately else "note", "crashes", what + last, remedy)


def _last_crash(run: RunFigures) -> tuple[str, str]:
    """What the last one was, and what to do about its kind."""
    if not run.crashes:
        return "", CATALOGUE["restarts"].above
    path, crash = run.crashes[-1]
    kind, message = str(crash.get("kind", "")), str(crash.get("message", ""))
    replay = f"millrace replay {path}"
    if kind == "hung":
        remedy = f"raise --collect.step_timeout_s if steps may take that long; {replay}"
    elif kind == "failed to start":
        remedy = "raise --collect.start_timeout_s if starting may take that long; `log.txt` has the reason"
    elif "signal 9" in message:
        remedy = "usually memory: fewer --workers or --envs-per-worker"
    else:
        remedy = replay
    return f"; the last: {message} ({kind})", remedy


def _memory(run: RunFigures) -> Iterator[Finding]:
    name = "worker_memory_mb"
    used, remedy = run.now(name), CATALOGUE[name].above
    if math.isnan(used):
        return
    total = min(filter(None, (system.memory_bytes()[0], system.memory_limit_bytes())), default=0) / 2**20
    workers = int(run.now("workers_up")) if is_number(run.now("workers_up")) else run.config.collect.workers
    if total and used * workers > NEARLY_ALL_MEMORY * total:
        what = f"{workers} workers of {used:,.0f} MB nearly fill the {total:,.0f} MB of this machine"
        yield Finding("warning", "memory", what, remedy)
    before = median(run.rows[: max(1, len(run.rows) // 4)], name)
    if len(run.rows) >= 4 * FEWEST_ROWS and used > max(GROWN * before, before + GROWN_MB):
        yield Finding("warning", "memory", f"a worker grew from {before:,.0f} MB to {used:,.0f} MB", remedy)


def median(rows: list[Row], name: str) -> float:
    """Of a figure over rows, what is not finite left out; nan where nothing is left."""
    values = [row[name] for row in rows if is_number(row.get(name))]
    return float(statistics.median(values)) if values else math.nan


def upper_quartile(rows: list[Row], name: str) -> float:
    """What a quarter of the rows reaches, what is not finite left out; nan where nothing is left."""
    values = sorted(row[name] for row in rows if is_number(row.get(name)))
    return float(values[-1 - len(values) // 4]) if values else math.nan


def is_number(value: Any) -> bool:
    """Whether it is a finite one."""
    return isinstance(value, int | float) and math.isfinite(value)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
