"""What leaves the learner after an update: weights and options for collectors, policies for other programs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from millrace import __version__
from millrace.checkpointer import arrays_of
from millrace.collect.source import RolloutSource
from millrace.config import Config
from millrace.curriculum import Curriculum
from millrace.deploy.policy_pool import PolicyPool
from millrace.errors import CheckpointError
from millrace.learner.ppo import Learner
from millrace.logbook import Logbook


class Publisher:
    """Keeps collectors, and the run's pool of policies, up to date.

    Args:
        record: the policy's description.
    """

    def __init__(
        self,
        config: Config,
        learner: Learner,
        source: RolloutSource,
        curriculum: Curriculum,
        record: Mapping[str, Any],
        logbook: Logbook,
    ) -> None:
        self._config, self._learner, self._source, self._curriculum = config, learner, source, curriculum
        self._record, self._logbook = record, logbook
        self._last_published_s = 0.0

    def publish(self, env_steps: int, progress: float) -> None:
        """Make the learner's weights the newest ones, and the environment options those of this moment.

        Args:
            progress: of the run, 0..1.
        """
        self._source.updates, self._source.progress = self._learner.updates, progress
        if self._is_due:
            self._source.publish(self._learner.weights())
            self._last_published_s = time.perf_counter()
        self._add_to_pool(env_steps)
        options = self._curriculum.at(env_steps)
        if options != self._source.pool.options.current:
            self._source.pool.options.current = options
            self._logbook.log(f"at {env_steps:,} steps: " + ", ".join(f"{k}={v}" for k, v in options.items()))

    @property
    def _is_due(self) -> bool:
        settings = self._config.collect
        passed = self._learner.updates - self._source.version
        if not self._source.has_published:
            return True
        is_time = time.perf_counter() - self._last_published_s >= settings.publish_every_s
        return passed >= settings.publish_every_updates and is_time

    def _add_to_pool(self, env_steps: int) -> None:
        """The policy as a file among those of recent updates, if they are wanted; a full disk is survived."""
        settings, learner = self._config.checkpoint, self._learner
        if not settings.pool_versions or learner.updates % settings.pool_every_updates:
            return
        pool = PolicyPool(self._logbook.directory.path / "pool", settings.pool_versions)
        try:
            pool.add(self._record, arrays_of(learner.policy), learner.updates, env_steps, __version__)
        except CheckpointError as error:
            self._logbook.note(f"{error}; training goes on")
