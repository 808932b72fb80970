"""`millrace eval`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from millrace.cli.main import COMMANDS
from millrace.cli.output import number, print_json, print_table, seconds
from millrace.cli.parser import Parser
from millrace.cli.settings import add_dict_option

if TYPE_CHECKING:
    from millrace.deploy.evaluate import Evaluation

EXAMPLES = """\
  millrace eval                                     the newest run, 100 episodes
  millrace eval runs/mine --episodes 500 --seed 1000
  millrace eval runs/mine --record games.jsonl      for: millrace train ENV --imitate games.jsonl
  millrace eval runs/mine --env.kwargs map=random --env.kwargs num_maps=100

Episode i is reset with seed + i: two policies with the same seed play the same episodes."""


def parser() -> Parser:
    """The options of `eval`."""
    options = Parser("eval", f"{COMMANDS['eval'].capitalize()}.", EXAMPLES)
    add_policy(options)
    options.add_argument("--episodes", type=int, default=100, metavar="INT", help="how many [100]")
    options.add_argument("--record", metavar="GAMES.jsonl", help="write the games there, for --imitate to play again")
    options.add_argument("--json", action="store_true", help="one JSON object, every episode in it")
    return options


def add_policy(options: argparse.ArgumentParser) -> None:
    """Whose policy plays what, and how."""
    options.add_argument("run", metavar="RUN", nargs="?", help="a run or a checkpoint; the newest run if left out")
    options.add_argument("--seed", type=int, default=0, metavar="INT", help="of the first episode [0]")
    options.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most probable")
    options.add_argument("--env", metavar="ENV", help="another environment than the run's: id or MODULE:FUNCTION")
    add_dict_option(options, "env.kwargs", "arguments for the environment besides the run's")


def run(words: list[str]) -> int:
    """Evaluate."""
    arguments = parser().parse(words)
    if arguments.episodes < 1:
        parser().error(f"--episodes {arguments.episodes} must be 1 or more")
    from millrace.deploy.evaluate import evaluate
    from millrace.deploy.policy import load_policy

    policy = load_policy(arguments.run)
    begin_s = time.perf_counter()
    played = evaluate(
        policy,
        arguments.env,
        episodes=arguments.episodes,
        seed=arguments.seed,
        deterministic=not arguments.stochastic,
        env_kwargs=arguments.settings.get("env.kwargs"),
        record=arguments.record,
    )
    wall_s = time.perf_counter() - begin_s
    if arguments.json:
        print_json({"checkpoint": policy.checkpoint, "episodes": [vars(episode) for episode in played.episodes]})
        return 0
    print(f"{policy.checkpoint}: {arguments.episodes} episodes in {seconds(wall_s)}\n")
    print_table(figure_rows(played), ("", "mean", "deviation", "min", "max"))
    return 0


def figure_rows(played: Evaluation) -> list[list[str]]:
    """Return, length and the game's own figures: mean, standard deviation, min and max of each."""
    columns: dict[str, Any] = {
        "return": played.returns,
        "length (steps)": [episode.length_steps for episode in played.episodes],
    }
    for name in played.episodes[0].figures:
        columns[name] = played.figure(name)
    return [[name, *_summary(values)] for name, values in columns.items()]


def _summary(values: Any) -> list[str]:
    import numpy as np

    # A figure may be missing from some episodes.
    known = np.asarray(values, float)[~np.isnan(np.asarray(values, float))]
    return [number(float(figure)) for figure in (known.mean(), known.std(), known.min(), known.max())]
