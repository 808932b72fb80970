"""The parameters of `benchmarks.scaling_model` on this machine, and how well it predicts runs with more workers.

python -m benchmarks.scaling_model measure --part rates         predicted against measured, 1 to 16 workers
python -m benchmarks.scaling_model measure --part show          the table of that again
python -m benchmarks.scaling_model measure --part bytes         rollouts: size, compression and its speed
python -m benchmarks.scaling_model measure --part messages      what a rollout costs the trainer's process, with Ray
python -m benchmarks.scaling_model measure --part grants        and what the grant rule takes of that
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from benchmarks import child, harness
from benchmarks.envs import make_sleep
from benchmarks.scaling_model import Cluster, steps_per_second

Settings = dict[str, Any]
START_AND_END_S = 60.0
WORKERS = (1, 2, 4, 8, 16)


def make_sleepy() -> Any:
    """Every step sleeps 5 ms."""
    return make_sleep(5.0)


@dataclass(frozen=True)
class Work:
    """A game to predict."""

    env: str | Callable[[], Any]
    settings: Settings
    step_computes: bool


WORKS = {
    "CartPole": Work(
        "CartPole-v1", {"collect.envs_per_worker": 64, "collect.rollout_steps": 64, "ppo.minibatches": 4}, True
    ),
    "RealmMini": Work("realm-mini", {"collect.envs_per_worker": 32, "collect.rollout_steps": 32}, True),
    "sleep 5 ms": Work(make_sleepy, {"collect.envs_per_worker": 1, "collect.rollout_steps": 64}, False),
}
COMMON: Settings = {"collect.backend": "processes", "collect.max_policy_lag": 1, "ppo.epochs": 4, "ppo.threads": 1}


# --- rates -----------------------------------------------------------------------------------------------------------


def train(name: str, workers: int, seconds: float) -> None:
    """One run: its speed, and what its parts took."""
    from benchmarks import millrace_runs as runs  # here: the harness side of this file runs without millrace

    work = WORKS[name]
    settings = {**work.settings, **COMMON, "collect.workers": workers, "stop.wall_s": seconds + runs.START_S + workers}
    # Workers start one after another: a second for each.
    rows, _ = runs.train(work.env, settings, child.seed())
    first, last = runs.steady_span(rows)
    child.report({"steps_per_second": runs.rate(first, last), **_parts(rows, first, last, work, workers)})


def _parts(
    rows: Sequence[dict[str, Any]], first: dict[str, Any], last: dict[str, Any], work: Work, workers: int
) -> dict[str, float]:
    """Of the model. Shares are of the time since training began, which the run's clock began before."""
    begin_s = rows[0]["time_s"] - rows[0]["env_steps"] / rows[0]["steps_per_second"]

    def spent_s(*names: str) -> float:
        totals = [sum(row[name] for name in names) * (row["time_s"] - begin_s) for row in (first, last)]
        return float(totals[1] - totals[0])

    rollout_rows = work.settings["collect.envs_per_worker"] * work.settings["collect.rollout_steps"]
    rollouts = (last["updates"] - first["updates"]) * workers
    acting = ("share_inference", "share_collector_other")
    collecting_s, acting_s = spent_s("share_step", *acting), spent_s(*acting)
    return {
        "rows": rollout_rows,
        "collect_s": collecting_s * workers / rollouts,
        "busy_s": (collecting_s if work.step_computes else acting_s) * workers / rollouts,
        "learn_row_s": spent_s("share_learn") / rollouts / rollout_rows,
        "message_s": spent_s("share_trainer_other") / rollouts,
        "cores": float(harness.machine()["cores"]),
    }


def composed(parts: dict[str, float], workers: int) -> float:
    """Steps a second of so many workers whose rollouts, and learning from them, take as long as `parts` says."""
    cluster = Cluster(
        step_s=parts["collect_s"] / parts["rows"], step_deviation_s=0.0, inference_s=0.0, slots=1,
        steps=int(parts["rows"]), row_bytes=0.0, weight_bytes=0.0, learn_row_s=parts["learn_row_s"],
        message_s=parts["message_s"], rollout_handling_s=0.0, latency_s=0.0, actors=workers,
    )  # fmt: skip
    return steps_per_second(cluster)


def predict(parts: dict[str, float], workers: int) -> float:
    """The same on this machine, from what one worker's run told: all share the cores."""
    processor_s = parts["busy_s"] + parts["rows"] * parts["learn_row_s"] + parts["message_s"]
    return min(composed(parts, workers), parts["rows"] / (processor_s / parts["cores"]))


def rates(repeats: int, seconds: float) -> None:
    """Every work with every number of workers, in turn."""
    for name in WORKS:
        candidates = [_candidate(name, workers, seconds) for workers in WORKERS]
        harness.save(_results_name(name), harness.alternate(candidates, repeats, seconds + START_AND_END_S))
    show()


def show() -> None:
    """The table of the rates that are kept: each repeat is predicted from its own run with one worker."""
    print(
        "| game | workers | measured, steps/s | predicted from one worker / measured | from its own parts / measured |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name in WORKS:
        runs = [run for run in harness.load(_results_name(name))[0] if not run.error]
        parts = {run.repeat: run.figures for run in runs if run.candidate == "1"}
        for candidate, group in sorted(harness.by_candidate(runs).items(), key=lambda item: int(item[0])):
            workers, rates = int(candidate), [run.figures["steps_per_second"] for run in group]
            ratios = [
                predict(parts[run.repeat], workers) / rate
                for run, rate in zip(group, rates, strict=True)
                if run.repeat in parts
            ]
            own = [composed(run.figures, workers) / rate for run, rate in zip(group, rates, strict=True)]
            cells = (_spread(rates, "{:,.0f}"), _spread(ratios, "{:.2f}"), _spread(own, "{:.2f}"))
            print(f"| {name} | {workers} | {' | '.join(cells)} |", flush=True)


def _spread(values: Sequence[float], form: str) -> str:
    median, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{median} [{low}..{high}]"


def _results_name(name: str) -> str:
    return f"scaling-{name.split()[0].lower()}"


def _candidate(name: str, workers: int, seconds: float) -> harness.Candidate:
    script = (sys.executable, "-m", "benchmarks.scaling_model", "measure", "--seconds", str(seconds))
    return harness.Candidate(str(workers), (*script, "--train", name, "--workers", str(workers)))


# --- bytes -----------------------------------------------------------------------------------------------------------

ROLLOUTS: dict[str, Settings] = {
    "CartPole, 64 x 64": {"env.id": "CartPole-v1", "collect.envs_per_worker": 64, "collect.rollout_steps": 64},
    "RealmMini, 32 x 32": {
        "env.id": "millrace/RealmMini-v0", "collect.envs_per_worker": 32, "collect.rollout_steps": 32,
    },
    "Realm, 64 x 32": {"env.id": "millrace/Realm-v0", "collect.envs_per_worker": 64, "collect.rollout_steps": 32},
    "Pong, 8 x 128": {"env.id": "ALE/Pong-v5", "collect.envs_per_worker": 8, "collect.rollout_steps": 128},
}  # fmt: skip


def sizes() -> None:
    """Real rollouts, by random policies, compressed whole."""
    print("| rollout | MB | bytes a row | method | ratio | compress, MB/s | decompress, MB/s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, settings in ROLLOUTS.items():
        plain, rows = _rollout(settings)
        for method, compress, decompress in _methods():
            packed = compress(plain)
            there_s, back_s = _median_s(compress, plain), _median_s(decompress, packed)
            cells = (
                name, f"{len(plain) / 1e6:.2f}", f"{len(plain) / rows:,.0f}", method, f"{len(plain) / len(packed):.1f}",
                f"{len(plain) / there_s / 1e6:,.0f}", f"{len(plain) / back_s / 1e6:,.0f}",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


def _rollout(settings: Settings) -> tuple[bytes, int]:
    """The bytes of the second batch of one worker, and its rows."""
    from millrace.config import Config
    from millrace.envs.make import EnvMaker
    from millrace.run import Run

    quiet = {"collect.backend": "serial", "collect.workers": 1, "run_dir": str(child.scratch()), "ppo.epochs": 1}
    config = Config().replace({**settings, **quiet, "metrics.console": "off", "metrics.tensorboard": False})
    with Run(config, EnvMaker(config.env, None)) as run:
        for _ in range(2):
            batch = run.source.next_batch()
            run.learner.update(batch, run.env_steps)
            run.publish()
        plain = b"".join(array.tobytes() for _, array in batch.rollout.fields())
        return plain, batch.rollout.num_steps * batch.rollout.num_slots


def _methods() -> list[tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]]:
    methods = [("zlib 1", lambda plain: zlib.compress(plain, 1), zlib.decompress)]
    try:
        import lz4.frame
    except ModuleNotFoundError:
        return methods
    return [*methods, ("lz4", lz4.frame.compress, lz4.frame.decompress)]


def _median_s(call: Callable[[bytes], bytes], data: bytes, repeats: int = 5) -> float:
    """CPU time of this process."""
    spent = []
    for _ in range(repeats):
        begin = time.process_time()
        call(data)
        spent.append(time.process_time() - begin)
    return statistics.median(spent)


# --- messages --------------------------------------------------------------------------------------------------------


def messages(actors: int = 6, count: int = 200, warmup: int = 20) -> None:
    """Ray: `wait`, `get`, the next call, two under way for each actor, which sleep."""
    import numpy as np
    import psutil
    import ray

    ray.init(num_cpus=actors, include_dashboard=False, logging_level="error", log_to_driver=False)

    @ray.remote
    class Actor:
        def collect(self, weights: Any, num_bytes: int) -> Any:
            time.sleep(0.02)
            return np.ones(num_bytes, np.uint8)

    weights, me = ray.put(np.zeros(10_000, np.float32)), psutil.Process()
    print("| bytes | in the thread, us a message | CPU of the process, us a message |\n| --- | --- | --- |")
    for num_bytes in (4_000, 100_000, 1_000_000, 8_000_000):
        workers = [Actor.remote() for _ in range(actors)]
        under_way = {a.collect.remote(weights, num_bytes): a for a in workers for _ in range(2)}
        busy_s, cpu_s = 0.0, 0.0
        for message in range(warmup + count):
            if message == warmup:
                busy_s, cpu_s = 0.0, sum(me.cpu_times()[:2])
            done, _ = ray.wait(list(under_way), num_returns=1)
            begin = time.perf_counter()
            actor = under_way.pop(done[0])
            ray.get(done[0])
            under_way[actor.collect.remote(weights, num_bytes)] = actor
            busy_s += time.perf_counter() - begin
        cpu_s = sum(me.cpu_times()[:2]) - cpu_s
        print(f"| {num_bytes:,} | {busy_s / count * 1e6:.0f} | {cpu_s / count * 1e6:.0f} |", flush=True)
        for worker in workers:
            ray.kill(worker)
    ray.shutdown()


# --- grants ----------------------------------------------------------------------------------------------------------


@dataclass
class AtOnce:
    """A pool whose rollouts are there when they are asked for, some at a time."""

    workers: int
    message: int
    is_shuffled: bool
    setup: Any = field(default_factory=lambda: SimpleNamespace(policy=SimpleNamespace(restarts=0)))
    board: Any = field(default_factory=lambda: SimpleNamespace(version=0))
    under_way: list[tuple[int, int, int]] = field(default_factory=list)
    """Worker, place and version."""

    def __post_init__(self) -> None:
        self.active, self._places, self._random = self.workers, itertools.count(), random.Random(0)
        self.slab = SimpleNamespace(num_free=10**9, acquire=lambda: next(self._places), release=lambda place: None)

    def is_up(self, worker: int) -> bool:
        return True

    def grant(self, worker: int, place: int, version: int | None = None) -> None:
        self.under_way.append((worker, place, self.board.version))
        if self.is_shuffled:
            other = self._random.randrange(len(self.under_way))
            self.under_way[-1], self.under_way[other] = self.under_way[other], self.under_way[-1]

    def poll(self, timeout_s: float) -> list[Any]:
        from millrace.collect.collector import Collected
        from millrace.collect.pool import Outcome
        from millrace.types import CollectorTimes

        done, self.under_way = self.under_way[: self.message], self.under_way[self.message :]
        return [Outcome(w, p, Collected(version, (), CollectorTimes(), 0)) for w, p, version in done]


@dataclass
class Counting:
    """A queue of rollouts that hold nothing."""

    batch: int
    ready: list[Any] = field(default_factory=list)

    def admits(self, num_granted: int, updates_ahead: int) -> bool:
        return updates_ahead + (num_granted + len(self.ready)) // self.batch <= 1

    def insert(self, item: Any) -> None:
        self.ready.append(item)

    def waiting(self) -> list[Any]:
        return list(self.ready)

    def can_take(self) -> bool:
        return len(self.ready) >= self.batch

    def take(self, version: int, progress: float) -> Any:
        self.ready.sort(key=lambda item: item.version)
        del self.ready[: self.batch]
        return SimpleNamespace(emphasis=None)


def grants() -> None:
    """The source alone: granting and settling, nothing collected, nothing copied."""
    print("| workers | in the order of their grants, CPU, us a rollout | in any order | in any order, one by one |")
    print("| --- | --- | --- | --- |")
    for workers in (10, 100, 1000, 3000, 10_000):
        spent = (_grant_us(workers, 32, False), _grant_us(workers, 32, True), _grant_us(workers, 1, True))
        print(f"| {workers:,} | {' | '.join(f'{us:,.0f}' for us in spent)} |", flush=True)


def _grant_us(workers: int, message: int, is_shuffled: bool) -> float:
    """CPU, a rollout."""
    from millrace.collect.source import RolloutSource
    from millrace.config import CollectConfig

    config = CollectConfig(workers=workers, max_policy_lag=1, rollout_steps=1, envs_per_worker=1)
    pool = AtOnce(workers, message, is_shuffled)
    source = RolloutSource(pool, config, Counting(workers))  # type: ignore[arg-type]
    source.next_batch()
    batches = max(3, 2000 // workers)
    begin = time.process_time()
    for _ in range(batches):
        source.updates = pool.board.version = source.updates + 1
        source.next_batch()
    return (time.process_time() - begin) / batches / workers * 1e6


def main(words: Sequence[str]) -> None:
    """Measure one part, or all."""
    parts: dict[str, Callable[[], None]] = {"show": show, "bytes": sizes, "messages": messages, "grants": grants}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("rates", *parts), help="default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run of `rates`")
    parser.add_argument("--train", choices=tuple(WORKS), help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.train:
        train(arguments.train, arguments.workers, arguments.seconds)
        return
    if arguments.part in (None, "rates"):
        rates(arguments.repeats, arguments.seconds)
    for name, measure in parts.items():
        if arguments.part == name or (arguments.part is None and name != "show"):
            measure()
