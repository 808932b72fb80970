"""Learning against published results: recipes, several seeds each, mean of the last 100 training episodes.

python -m benchmarks.learning [--recipes cartpole-cleanrl,acrobot-cleanrl] [--seeds 3] [--parallel 2]

Prints the recipes of this call; `results/learning.json` keeps those of earlier ones too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import millrace
from benchmarks.harness import machine

REFERENCES = {
    "cartpole-cleanrl": ("CleanRL", "490 +- 6"),
    "cartpole-rlzoo": ("RL-Zoo", "500"),
    "acrobot-cleanrl": ("CleanRL", "-86 +- 1"),
    "cartpole-positions": ("RL-Zoo", "500"),
    "lunarlander-rlzoo": ("RL-Zoo", "242 +- 32"),
    "hopper-cleanrl": ("CleanRL", "2383 +- 272"),
    "halfcheetah-cleanrl": ("CleanRL", "1443 +- 46"),
}
RESULTS = Path(__file__).parent / "results" / "learning.json"
COLUMNS = ("recipe", "reference", "ours, mean +- deviation", "by seed", "final policy, 100 episodes", "seconds")


def measure(recipe: str, seeds: int, parallel: int) -> dict[str, Any]:
    """Train one recipe with seeds 1, 2, ... and keep every return."""
    with tempfile.TemporaryDirectory() as directory:
        found = millrace.train_seeds(
            recipe,
            seeds=list(range(1, seeds + 1)),
            parallel=parallel,
            run_dir=directory + "/seeds",
            settings={"metrics.tensorboard": False, "metrics.console": "lines"},
        )
        evaluated = [
            round(millrace.evaluate(record.run_dir, episodes=100, seed=10_000).mean_return, 1)
            for record in found.results
        ]
    source, reference = REFERENCES[recipe]
    return {
        "recipe": recipe,
        "reference": f"{source} {reference}",
        "ours": f"{found.mean_return:.1f} +- {found.deviation:.1f}",
        "returns": [round(record.mean_return, 1) for record in found.results],
        "evaluated": evaluated,
        "seconds": [round(record.wall_s, 1) for record in found.results],
        "parallel": parallel,
    }


def keep(rows: list[dict[str, Any]]) -> None:
    """Write the rows beside those of other recipes."""
    earlier = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    by_recipe = {row["recipe"]: row for row in [*earlier, *rows]}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": list(by_recipe.values())}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(REFERENCES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=1, help="seeds at a time; seconds are then not a quiet run's")
    arguments = parser.parse_args()
    rows = []
    for recipe in arguments.recipes.split(","):
        rows.append(measure(recipe, arguments.seeds, arguments.parallel))
        keep(rows)
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|")
    for row in rows:
        names = ("recipe", "reference", "ours", "returns", "evaluated", "seconds")
        print("| " + " | ".join(str(row[name]) for name in names) + " |")


if __name__ == "__main__":
    main()
