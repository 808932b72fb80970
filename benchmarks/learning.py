"""Learning against published results: recipes, several seeds each, mean of the last 100 training episodes.

python -m benchmarks.learning [--recipes cartpole-cleanrl,acrobot-cleanrl] [--seeds 3]
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

REFERENCES = {
    "cartpole-cleanrl": ("CleanRL", "490 +- 6"),
    "cartpole-rlzoo": ("RL-Zoo", "500"),
    "acrobot-cleanrl": ("CleanRL", "-86 +- 1"),
}
RESULTS = Path(__file__).parent / "results" / "learning.json"
RECIPES = Path(millrace.__file__).parent / "recipes"


def measure(recipe: str, seeds: int) -> dict[str, Any]:
    """Train one recipe with seeds 1, 2, ... and keep every return."""
    returns, seconds, evaluated = [], [], []
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory() as directory:
            result = millrace.train(
                str(RECIPES / f"{recipe}.toml"),
                seed=seed,
                run_dir=directory + "/run",
                quiet=True,
                settings={"metrics.tensorboard": False},
            )
            evaluation = millrace.evaluate(result.policy, episodes=100, seed=10_000)
        evaluated.append(round(evaluation.mean_return, 1))
        returns.append(round(result.mean_return, 1))
        seconds.append(round(result.wall_s, 1))
        print(f"{recipe} seed {seed}: {returns[-1]}, evaluated {evaluated[-1]}, in {seconds[-1]} s", flush=True)
    source, reference = REFERENCES[recipe]
    spread = statistics.stdev(returns) if seeds > 1 else 0.0
    return {
        "recipe": recipe,
        "source": source,
        "reference": reference,
        "returns": returns,
        "seconds": seconds,
        "evaluated": evaluated,
        "mean": round(statistics.mean(returns), 1),
        "deviation": round(spread, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(REFERENCES))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows = [measure(recipe, arguments.seeds) for recipe in arguments.recipes.split(",")]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    print(
        "| recipe | reference | ours, mean +- deviation | by seed | final policy, 100 episodes | seconds |\n"
        + "| --- " * 6
        + "|"
    )
    for row in rows:
        ours = f"{row['mean']} +- {row['deviation']}"
        cells = (
            row["recipe"],
            f"{row['source']} {row['reference']}",
            ours,
            row["returns"],
            row["evaluated"],
            row["seconds"],
        )
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
