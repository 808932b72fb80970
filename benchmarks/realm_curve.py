"""Realm in full: what runs of any length reached, as shares of the oracle's score.

    millrace train realm --total-env-steps 3_000_000 --run-dir runs/realm
    python -m benchmarks.realm_curve NAME runs/realm [runs/other ...]

Prints score over steps and time, and the final policies on 100 games beside the oracle's on the same; keeps them in
`results/realm-curve-NAME.json`, and draws the curves. The score over training is the mean of the last
100 episodes, with exploration, from whatever starts and with whatever treasures the curriculum gave then.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import millrace
from benchmarks.harness import machine
from millrace.experiments.curves import Curve
from millrace.experiments.picture import Line, draw_curves
from millrace.games.realm.oracle import oracle_scores
from millrace.metrics.rows import read_rows

RESULTS = Path(__file__).parent / "results"
GAMES = 100
PLAIN = {"random_start": 0.0}
FIGURES = ("score", "steps", "flashes", "buff_missed", "finished")
ROWS = 60


def measure(run: Path, oracle: float) -> dict[str, Any]:
    """The curve of a run and its final policy, both ways of acting."""
    rows = [row for row in read_rows(run) if row.get("game/score") is not None]
    curve = [
        {"env_steps": int(row["env_steps"]), "hours": row["time_s"] / 3600, "share": row["game/score"] / oracle}
        for row in [*rows[:: max(1, len(rows) // ROWS)], rows[-1]]
    ]
    final = {
        "sampled" if not deterministic else "most probable": _played(run, deterministic)
        for deterministic in (False, True)
    }
    return {"run": run.name, "curve": curve, "final": final}


def _played(run: Path, deterministic: bool) -> dict[str, float]:
    """Means over the games that the oracle plays too."""
    found = millrace.evaluate(run, episodes=GAMES, seed=0, deterministic=deterministic, env_kwargs=PLAIN)
    return {name: float(np.nanmean(found.figure(name))) for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the results")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/realm-curve.png"))
    arguments = parser.parse_args()
    oracle = float(oracle_scores("full", range(GAMES)).mean())
    found = [measure(run, oracle) for run in arguments.runs]
    target = RESULTS / f"realm-curve-{arguments.name}.json"
    target.write_text(json.dumps({"machine": machine(), "oracle": oracle, "runs": found}, indent=1))
    draw_curves(arguments.picture, "score over the oracle's", [_line(one) for one in found])
    print(f"oracle {oracle:.1f}\n| run | steps | hours | share of the oracle |\n| --- | --- | --- | --- |")
    for one in found:
        for point in one["curve"][:: len(one["curve"]) // 10]:
            print(f"| {one['run']} | {point['env_steps']:,} | {point['hours']:.2f} | {point['share']:.3f} |")
    print("\n| run | acts | " + " | ".join(FIGURES) + " | share of the oracle |\n" + "| --- " * 8 + "|")
    for one in found:
        for how, figures in one["final"].items():
            cells = " | ".join(f"{figures[name]:.2f}" for name in FIGURES)
            print(f"| {one['run']} | {how} | {cells} | {figures['score'] / oracle:.3f} |")


def _line(found: dict[str, Any]) -> Line:
    steps, shares = (np.array([point[name] for point in found["curve"]]) for name in ("env_steps", "share"))
    return Line(found["run"], [Curve(steps, shares)])


if __name__ == "__main__":
    main()
