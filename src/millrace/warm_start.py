"""What a run begins with besides random weights: those of another one, or what a player showed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millrace.checkpointer import load_into
from millrace.checkpoints.store import Checkpoint
from millrace.composer import Composer
from millrace.deploy.rllib_checkpoint import RllibCheckpoint
from millrace.errors import CheckpointError

if TYPE_CHECKING:
    from millrace.nets.policy import Policy


@dataclass(frozen=True)
class WarmStart:
    """What comes with the weights.

    Attributes:
        reward_statistics: that the policy's values are in units of; None: they begin anew.
        imitation_steps: that a player played, which count apart.
    """

    reward_statistics: dict[str, Any] | None = None
    imitation_steps: int = 0


def warm_start(
    policy: Policy,
    composer: Composer,
    init_from: Checkpoint | RllibCheckpoint | None,
    options: Mapping[str, Any],
    note: Callable[[str], None],
) -> WarmStart:
    """Give the policy the weights of `init_from`, or have it imitate `imitate.player`, or leave it as it is.

    Args:
        options: of the environment.

    Raises:
        CheckpointError: the weights are damaged or of another network.
    """
    if init_from is not None:
        return _take_over(policy, init_from, note)
    return _imitate(policy, composer, options, note) if composer.config.imitate.player else WarmStart()


def _take_over(policy: Policy, checkpoint: Checkpoint | RllibCheckpoint, note: Callable[[str], None]) -> WarmStart:
    """Weights, and reward statistics unless only the policy is whole."""
    load_into(policy, checkpoint)
    try:
        return WarmStart(checkpoint.read_trainer()["learner"])
    except CheckpointError as error:
        note(f"reward statistics begin anew: {error}")
        return WarmStart()


def _imitate(policy: Policy, composer: Composer, options: Mapping[str, Any], note: Callable[[str], None]) -> WarmStart:
    from millrace.imitation import imitate

    config = composer.config
    done = imitate(policy, composer.actor_maker, composer.maker, config, options, note)
    note(
        f"imitated {config.imitate.player} for {done.env_steps:,} steps, which count apart, in "
        f"{done.wall_s:.1f} s: {done.describe()}"
    )
    return WarmStart({"reward_scaler": done.reward_statistics}, done.env_steps)
