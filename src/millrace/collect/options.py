"""Which environment options are in force, and which each worker was given with which of its grants."""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]


class OptionsBoard:
    """Options go out with grants, when they have changed; the environment takes them for its next episodes.

    Attributes:
        current: in force from the next grant on.
    """

    def __init__(self, num_workers: int) -> None:
        self.current: Options = {}
        self._num_grants = [0] * num_workers
        self._given: list[list[tuple[int, Options]]] = [[] for _ in range(num_workers)]  # (grant, options)

    def grant(self, worker: int) -> Options | None:
        """Count a grant; the options to send with it, or None where the worker has them already."""
        given, number = self._given[worker], self._num_grants[worker]
        self._num_grants[worker] += 1
        if (given[-1][1] if given else {}) == self.current:
            return None
        given.append((number, self.current))
        return self.current

    def forget(self, worker: int) -> None:
        """A new process takes this worker's place, and has been given nothing."""
        self._num_grants[worker], self._given[worker] = 0, []

    def of_episodes(self, worker: int, slots: list[dict[str, Any]], rollout_steps: int) -> list[dict[str, Any]]:
        """Records of the action log with the options that each episode began under."""
        return [slot | {"options": self._at(worker, slot["start_step"], rollout_steps)} for slot in slots]

    def _at(self, worker: int, start_step: int, rollout_steps: int) -> Options:
        # The reset was the transition before the episode's first step.
        grant = max(start_step - 1, 0) // rollout_steps
        return next((options for number, options in reversed(self._given[worker]) if number <= grant), {})
