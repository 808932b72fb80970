"""`millrace check-env`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from millrace.cli.main import COMMANDS
from millrace.cli.output import number, print_json, print_table
from millrace.cli.parser import Parser
from millrace.cli.settings import add_settings, overrule
from millrace.config import Config

if TYPE_CHECKING:
    from millrace.cli.inspection import Inspection

EXAMPLES = """\
  millrace check-env my_game:make_env
  millrace check-env millrace/RealmMini-v0 --env.kwargs map=random"""

HOW_EXACT = {
    "state": "exact: the environment's state is saved",
    "replay": "exact: episodes in progress are replayed from seed and actions",
}


def parser() -> Parser:
    """The options of `check-env`."""
    options = Parser("check-env", f"{COMMANDS['check-env'].capitalize()}.", EXAMPLES)
    options.add_argument(
        "env", metavar="ENV", help="what `millrace train` takes: an id, MODULE:FUNCTION, TOML, a recipe"
    )
    options.add_argument("--json", action="store_true", help="one JSON object")
    add_settings(options)
    return options


def run(words: list[str]) -> int:
    """Check."""
    arguments = parser().parse(words)
    config = overrule(Config.named(arguments.env), arguments.settings)
    from millrace.cli.inspection import inspect_env

    found = inspect_env(config)
    if arguments.json:
        print_json(as_json(found))
    else:
        print_table(rows(found))
    return 0


def rows(found: Inspection) -> list[tuple[str, str]]:
    """The findings in words."""
    from millrace.cli.inspection import describe_layout, describe_network
    from millrace.resolve import batch_size_rows

    spec, collect, ppo = found.probe.spec, found.config.collect, found.config.ppo
    layout = [("seen as" if i == 0 else "", text) for i, text in enumerate(describe_layout(spec))]
    speed = f"{found.steps_per_second:,.0f} steps/s one copy, {found.batch_steps_per_second:,.0f} steps/s"
    sizes = f"{collect.workers} workers x {collect.envs_per_worker} copies x {collect.rollout_steps} steps"
    return [
        ("environment", found.name),
        ("stepped as", found.form),
        ("observation", found.observation_space),
        *layout,
        ("action", found.action_space),
        ("action mask", f"yes, {spec.num_mask_bits} bits" if spec.has_action_mask else "none"),
        (
            "same seed",
            "same observations and rewards" if not found.deterministic else f"differs: {found.deterministic}",
        ),
        ("resume", _resume(found)),
        ("speed", f"{speed} {collect.envs_per_worker} copies"),
        ("random play", _random_play(found)),
        ("figures", ", ".join(found.figures) or "none in the final info"),
        ("bad values", f"{found.bad_values} missing or not finite" if found.bad_values else "none"),
        ("", ""),
        ("network", describe_network(spec, found.config)),
        (
            "collect",
            f"{collect.backend}, {sizes} = {batch_size_rows(found.config):,} rows, lag {collect.max_policy_lag}",
        ),
        ("learn", f"{ppo.epochs} epochs of minibatches of {ppo.minibatch_size}, {ppo.threads} threads"),
    ]


def _resume(found: Inspection) -> str:
    if found.restorable:
        return f"begins new episodes: {found.restorable}"
    return HOW_EXACT.get(found.probe.exactness, f"begins new episodes: {found.probe.exactness}")


def _random_play(found: Inspection) -> str:
    import numpy as np

    if not found.episode_returns:
        return "no episode ended; set env.max_episode_steps if none ever does"
    returns, lengths = np.array(found.episode_returns), np.array(found.episode_lengths)
    return (
        f"{len(returns)} episodes, return {number(float(returns.mean()))} "
        f"({number(float(returns.min()))}..{number(float(returns.max()))}), {lengths.mean():.0f} steps on average"
    )


def as_json(found: Inspection) -> dict[str, Any]:
    """The findings as plain values."""
    fields = {name: value for name, value in vars(found).items() if name not in ("probe", "config")}
    return {
        **fields,
        "spec": found.probe.spec.to_json(),
        "exactness": found.probe.exactness,
        "config": dataclasses.asdict(found.config),
    }
