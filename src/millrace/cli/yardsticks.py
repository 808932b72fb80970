"""A trained Realm policy beside random play, the scripted walker and the oracle, on the same games."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.deploy.evaluate import evaluate
from millrace.deploy.policy import LoadedPolicy
from millrace.envs.registration import GAME_SIZES
from millrace.games.realm.oracle import oracle_scores, random_scores, walker_scores

GAMES = 100
SEED = 1_000_000  # far from the seeds of training and evaluation
UNSEEN_MAPS: dict[str, Any] = {"map": "random", "num_maps": GAMES, "map_seed": SEED}


@dataclass(frozen=True)
class Comparison:
    """Mean scores on one set of games."""

    games: str
    policy: float
    random: float
    walker: float
    oracle: float

    @property
    def ratio(self) -> float:
        """The policy's score over the oracle's."""
        return self.policy / self.oracle


def compare(policy: LoadedPolicy, deterministic: bool = True) -> list[Comparison]:
    """The four on the same games: on the map of training, and on maps that nobody has seen."""
    return [
        _compare(policy, "training map", {}, deterministic),
        _compare(policy, "unseen maps", UNSEEN_MAPS, deterministic),
    ]


def _compare(policy: LoadedPolicy, games: str, map_options: dict[str, Any], deterministic: bool) -> Comparison:
    size = GAME_SIZES[policy.env.id]
    options = {**policy.env.kwargs, **map_options}
    seeds = list(range(SEED, SEED + GAMES))
    played = evaluate(policy, episodes=GAMES, seed=SEED, deterministic=deterministic, env_kwargs=options)

    def mean(scores: npt.NDArray[np.float64]) -> float:
        return float(scores.mean())

    return Comparison(
        games,
        mean(played.figure("score")),
        mean(random_scores(size, seeds, **options)),
        mean(walker_scores(size, seeds, **options)),
        mean(oracle_scores(size, seeds, **options)),
    )
