"""`millrace eval`."""

from __future__ import annotations

import argparse
import contextlib
import time
from typing import TYPE_CHECKING, Any

from millrace.cli.main import COMMANDS
from millrace.cli.output import print_json, seconds
from millrace.cli.parser import Parser, add_trust
from millrace.cli.settings import add_dict_option
from millrace.errors import ConfigError

if TYPE_CHECKING:
    from millrace.deploy.evaluate import Evaluation
    from millrace.deploy.policy import LoadedPolicy

EXAMPLES = """\
  millrace eval                                     the newest run, 100 episodes
  millrace eval runs/mine --episodes 500 --seed 1000 --quiet
  millrace eval runs/mine runs/other                which is better, on the same episodes
  millrace eval runs/mine --detail worst            the worst episode, step by step
  millrace eval runs/mine --record games.jsonl      for: millrace train ENV --imitate games.jsonl
  millrace eval runs/mine --start games.jsonl:7:120 from where step 120 of game 7 led
  millrace eval runs/mine --env.kwargs map=random --env.kwargs num_maps=100

Episode i is reset with seed + i: two policies with the same seed play the same episodes."""


def parser() -> Parser:
    """The options of `eval`."""
    options = Parser("eval", f"{COMMANDS['eval'].capitalize()}.", EXAMPLES)
    options.add_argument("runs", metavar="RUN", nargs="*", help="runs or checkpoints; the newest run if left out")
    add_playing(options)
    options.add_argument("--episodes", type=int, metavar="INT", help="how many [100; 1 from a start without draws]")
    options.add_argument("--parallel", type=int, metavar="INT", help="processes [as many as are worth their start]")
    options.add_argument("--start", metavar="GAMES.jsonl:EPISODE:STEP", help="begin where these recorded actions lead")
    options.add_argument("--detail", metavar="WHICH", help="step by step: best, worst, best:3, worst:3 or 0,7,12")
    options.add_argument("--record", metavar="GAMES.jsonl", help="write the games there, for --imitate to play again")
    options.add_argument("--quiet", action="store_true", help="the summary alone, no line for each episode")
    options.add_argument("--json", action="store_true", help="one JSON object, every episode in it")
    return options


def add_playing(options: argparse.ArgumentParser) -> None:
    """What is played, and how."""
    options.add_argument("--seed", type=int, default=0, metavar="INT", help="of the first episode [0]")
    options.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most probable")
    options.add_argument("--env", metavar="ENV", help="another environment than the run's: id or MODULE:FUNCTION")
    add_trust(options)
    add_dict_option(options, "env.kwargs", "arguments for the environment besides the run's")


def run(words: list[str]) -> int:
    """Evaluate."""
    arguments = parser().parse(words)
    _check(arguments)
    from millrace.deploy.policy import load_policy

    policies = {name: load_policy(name, trust=arguments.trust) for name in dict.fromkeys(arguments.runs) or [""]}
    if len(policies) == 1:
        _evaluate_one(arguments, *policies.values())
    else:
        _evaluate_many(arguments, policies)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be; fill in how many episodes."""
    if arguments.episodes is None:
        arguments.episodes = 1 if arguments.start and not arguments.stochastic else 100
    for name in ("episodes", "parallel"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} {getattr(arguments, name)} must be 1 or more")
    if len(set(arguments.runs)) > 1 and (arguments.detail or arguments.record):
        raise ConfigError("--detail and --record are for one run; several are compared")
    if arguments.detail:
        _chosen(arguments.detail, [0.0] * arguments.episodes)


def _evaluate_one(arguments: argparse.Namespace, policy: LoadedPolicy) -> None:
    from millrace.cli.evaluations import plain, plain_step, print_steps, print_summary

    begin_s = time.perf_counter()
    played = _play(arguments, policy)
    wall_s = time.perf_counter() - begin_s
    details = _details(arguments, policy, played) if arguments.detail else {}
    if arguments.json:
        detail = {"detail": {index: list(map(plain_step, steps)) for index, steps in details.items()}}
        print_json({"checkpoint": policy.checkpoint, **plain(played), **(detail if details else {})})
        return
    print(f"{policy.checkpoint}: {arguments.episodes} episodes in {seconds(wall_s)}\n")
    print_summary(played)
    for index, steps in details.items():
        print(f"\nepisode {index}, seed {played.episodes[index].seed}\n")
        print_steps(steps)


def _evaluate_many(arguments: argparse.Namespace, policies: dict[str, LoadedPolicy]) -> None:
    from millrace.cli.evaluations import plain, print_comparison
    from millrace.deploy.compare import compare

    _refuse_different_games(arguments, policies)
    evaluations = {name: _play(arguments, policy, name) for name, policy in policies.items()}
    first, *others = evaluations
    comparisons = {name: compare(evaluations[name], evaluations[first], len(others)) for name in others}
    if arguments.json:
        played = {name: {"checkpoint": policies[name].checkpoint, **plain(evaluations[name])} for name in evaluations}
        compared = {name: vars(comparison) for name, comparison in comparisons.items()}
        print_json({"policies": played, "compared_with": first, "comparisons": compared})
        return
    print(f"{arguments.episodes} episodes each, from {arguments.start or f'seed {arguments.seed} on'}\n")
    print_comparison(evaluations, comparisons)


def _refuse_different_games(arguments: argparse.Namespace, policies: dict[str, LoadedPolicy]) -> None:
    """Returns of different games say nothing about each other."""
    overruled = arguments.settings.get("env.kwargs", {})
    games = {
        name: (p.env.id, {**p.env.kwargs, **overruled}, p.env.wrappers, p.env.max_episode_steps)
        for name, p in policies.items()
    }
    first = next(iter(games))
    for name, game in games.items():
        if game != games[first] and not arguments.env:
            raise ConfigError(
                f"{name} was trained on {game[0]} with {game[1:]}, {first} on {games[first][0]} with "
                f"{games[first][1:]}: name one environment with --env, or make them equal with --env.kwargs"
            )


def _play(arguments: argparse.Namespace, policy: LoadedPolicy, name: str = "") -> Evaluation:
    """The episodes of one policy, shown as they end."""
    from millrace.cli.evaluations import EpisodeLines
    from millrace.deploy.evaluate import evaluate

    is_silent = arguments.json or arguments.quiet
    if name and not is_silent:
        print(f"{name}\n")
    with contextlib.nullcontext() if is_silent else EpisodeLines(arguments.episodes) as lines:
        played = evaluate(
            policy,
            arguments.env,
            episodes=arguments.episodes,
            seed=arguments.seed,
            deterministic=not arguments.stochastic,
            env_kwargs=arguments.settings.get("env.kwargs"),
            record=arguments.record,
            keep_games=bool(arguments.detail),
            start=arguments.start,
            parallel=arguments.parallel,
            on_episode=lines.tell if lines else None,
        )
    if not is_silent:
        print()
    return played


def _details(arguments: argparse.Namespace, policy: LoadedPolicy, played: Evaluation) -> dict[int, Any]:
    """The episodes that were asked for, step by step."""
    from millrace.deploy.detail import steps_of
    from millrace.deploy.evaluate import maker_for
    from millrace.deploy.recorded_games import read_start

    maker = maker_for(policy, arguments.env).with_kwargs(**arguments.settings.get("env.kwargs", {}))
    first = read_start(arguments.start).steps if arguments.start else 0
    chosen = _chosen(arguments.detail, played.returns.tolist())
    return {index: steps_of(policy, maker, played.games[index], first) for index in chosen}


def _chosen(which: str, returns: list[float]) -> list[int]:
    """The episodes that best, worst, best:3 or 0,7,12 stands for; of equals the first."""
    word, _, count = which.partition(":")
    if word in ("best", "worst") and (count or "1").isdigit():
        return sorted(range(len(returns)), key=returns.__getitem__, reverse=word == "best")[: int(count or 1)]
    indices = [int(part) if part.strip().isdigit() else -1 for part in which.split(",")]
    if not all(0 <= index < len(returns) for index in indices):
        raise ConfigError(
            f"--detail {which!r} names no episodes; write best, worst, best:3, or numbers of 0..{len(returns) - 1} "
            "such as 0,7"
        )
    return indices
