"""RealmMini: the score over training, and seconds to 0.5, 0.8 and 0.9 of the oracle's.

    python -m benchmarks.realm_mini [--seeds 3] [--seconds 60]

The score is the mean of the last 100 training episodes, with exploration; the oracle's is over 100 games.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import millrace
from benchmarks.harness import machine
from millrace.games.realm.oracle import oracle_scores
from millrace.metrics.rows import read_rows

SHARES = (0.5, 0.8, 0.9)
RESULTS = Path(__file__).parent / "results" / "realm-mini.json"


def measure(seed: int, seconds: float, oracle: float) -> dict[str, Any]:
    """One run of the recipe: its curve, when it passed each share, and the final policy's score."""
    with tempfile.TemporaryDirectory() as directory:
        settings = {"metrics.tensorboard": False, "stop.wall_s": seconds}
        run_dir = directory + "/run"
        result = millrace.train("realm-mini", seed=seed, run_dir=run_dir, quiet=True, settings=settings)
        rows = read_rows(result.run_dir)
        evaluation = millrace.evaluate(result.policy, episodes=100, seed=0)
    curve = [(round(row["time_s"], 1), round(row["game/score"] / oracle, 3)) for row in rows if "game/score" in row]
    reached = {str(share): next((s for s, score in curve if score >= share), None) for share in SHARES}
    final = round(float(evaluation.figure("score").mean()) / oracle, 4)
    return {
        "seed": seed,
        "reached_s": reached,
        "final": final,
        "env_steps": result.env_steps,
        "steps_per_second": round(result.steps_per_second),
        "curve": curve[:: max(1, len(curve) // 60)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    oracle = float(oracle_scores("mini", range(100)).mean())
    runs = [measure(seed, arguments.seconds, oracle) for seed in range(1, arguments.seeds + 1)]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "oracle": oracle, "runs": runs}, indent=1))
    print(f"oracle {oracle:.1f}\n| share of the oracle | seconds, median [by seed] |\n| --- | --- |")
    for share in map(str, SHARES):
        seconds = [run["reached_s"][share] for run in runs]
        median = statistics.median(s for s in seconds if s is not None) if any(seconds) else None
        print(f"| {share} | {median} {seconds} |")
    print(f"| final policy on 100 games | {[run['final'] for run in runs]} of the oracle |")
    print(f"| steps per second | {[run['steps_per_second'] for run in runs]} |")


if __name__ == "__main__":
    main()
