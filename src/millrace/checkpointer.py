"""The checkpoints of a run: what they hold, how it goes on from one, which is the best, which are kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from millrace import __version__
from millrace.checkpoints.store import Checkpoint, CheckpointStore
from millrace.config import Config
from millrace.deploy.rllib_checkpoint import RllibCheckpoint
from millrace.envs.protocol import episode_seed
from millrace.errors import CheckpointError
from millrace.logbook import Logbook
from millrace.types import Array, EpisodeRecord

if TYPE_CHECKING:
    from millrace.nets.policy import Policy
    from millrace.run import Run


class Checkpointer:
    """Writes what a run is at the moment, and makes a run what it was.

    Args:
        record: the policy's description.
    """

    def __init__(self, config: Config, record: Mapping[str, Any], logbook: Logbook) -> None:
        self._config, self._record, self._logbook = config, record, logbook
        self._store = CheckpointStore(logbook.directory.checkpoints, config.checkpoint)
        self._best_score = -math.inf

    def note_score(self, score: float, env_steps: int) -> bool:
        """Whether it is the best so far; then the checkpoint of these steps is kept for it."""
        if not score > self._best_score:  # nan is none
            return False
        self._best_score, self._store.best_env_steps = score, env_steps
        return True

    def write(self, run: Run) -> Checkpoint | None:
        """Write one now and delete those that are no longer kept; a full disk is told about and survived."""
        if not self._config.eval.every_env_steps:
            self.note_score(run.mean_return, run.env_steps)
        try:
            policy = arrays_of(run.learner.policy)
            written = self._store.write(run.env_steps, self._record, policy, self._trainer_state(run), __version__)
            for path in self._store.retire():
                keep_last = self._config.checkpoint.keep_last
                self._logbook.log(f"deleted the checkpoint {path.name}: checkpoint.keep_last={keep_last}")
            return written
        except OSError as error:
            self._logbook.note(f"no checkpoint could be written at {run.env_steps} steps ({error}); training goes on")
            return None

    def _trainer_state(self, run: Run) -> dict[str, Any]:
        return {
            "env_steps": run.env_steps,
            "episodes": run.episodes,
            "updates_skipped": run.updates_skipped,
            "imitation_steps": run.imitation_steps,
            "wall_s": run.wall_s,
            "best_score": float(self._best_score),
            "best_env_steps": self._store.best_env_steps,
            "recent": [dataclasses.asdict(episode) for episode in run.recent],
            "counts": vars(run.source.counts).copy(),
            "learner": run.learner.save_state(),
            "collectors": run.source.save_state(),
        }

    def restore(self, run: Run, checkpoint: Checkpoint) -> Any:
        """All but the collectors, before they start; their states.

        Raises:
            CheckpointError: it is damaged, or of another network.
        """
        load_into(run.learner.policy, checkpoint)
        state = checkpoint.read_trainer()
        run.learner.load_state(state["learner"])
        run.env_steps, run.episodes = state["env_steps"], state["episodes"]
        run.updates_skipped, run.begin_s = state["updates_skipped"], run.begin_s - state["wall_s"]
        run.imitation_steps = state.get("imitation_steps", 0)
        self._best_score, self._store.best_env_steps = state["best_score"], state["best_env_steps"]
        run.recent.extend(EpisodeRecord(**episode) for episode in state["recent"])
        for name, value in state["counts"].items():
            setattr(run.source.counts, name, value)
        if state["collectors"] is None:
            # New episodes, then, and not those of the beginning once more.
            setup = run.source.pool.setup
            setup.seed = episode_seed(setup.seed, 1, run.env_steps)
        return state["collectors"]

    def restore_collectors(self, run: Run, states: Any) -> None:
        """Now that they have started; later checkpoints, which this undoes, are set aside. Tells how exact it is."""
        problems = run.source.load_state(states)
        collect = self._config.collect
        cut = len(problems) * collect.envs_per_worker
        if states is None:
            cut = collect.workers * collect.envs_per_worker
        for path in self._store.set_aside_after(run.env_steps):
            self._logbook.note(f"set aside the checkpoint {path.name}: resuming from before it undoes it")
        exactly = "exactly where it stopped" if not problems else f"with {cut} episodes cut and begun anew"
        emptied = "; the replay buffer begins empty" if self._config.replay.is_on else ""
        self._logbook.note(f"resumed at {run.env_steps:,} steps, {exactly}{emptied}")
        for problem in problems:
            self._logbook.note(f"  {problem}")


def arrays_of(policy: Policy) -> dict[str, Array]:
    """A policy's weights and normalisers by name."""
    return {name: tensor.cpu().numpy() for name, tensor in policy.state_dict().items()}


def load_into(policy: Policy, checkpoint: Checkpoint | RllibCheckpoint) -> None:
    """Copy a checkpoint's arrays into a policy.

    Raises:
        CheckpointError: names or shapes differ.
    """
    import torch

    _, arrays = checkpoint.read_policy()
    try:
        policy.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} does not fit this network: {error}") from None
