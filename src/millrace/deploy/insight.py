"""What a policy makes of one observation: how probable each action is to it, and what it expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from millrace.deploy.policy import LoadedPolicy
from millrace.nets.memory import Memory
from millrace.ops.sampling import HALF_LOG_TWO_PI, MASKED_LOGIT
from millrace.types import ActionSpec, Array


@dataclass(frozen=True)
class Option:
    """One category that could be chosen; of a masked one the probability is 0."""

    column: int
    category: int
    probability: float
    is_allowed: bool
    is_chosen: bool


@dataclass(frozen=True)
class Insight:
    """The action distribution and the value of one observation, and the action that was taken.

    Attributes:
        action: [A] columns as in `ActionSpec`: categories, then continuous ones.
        probabilities, allowed: one array for each column of categories.
        mean, deviation: [num_box] of the continuous columns.
        value: the expected return from here on, discounted as in training.
    """

    action: Array
    probabilities: list[Array]
    allowed: list[Array]
    mean: Array
    deviation: Array
    value: float

    @property
    def probability(self) -> float:
        """Of the action; a density where it is continuous."""
        chosen = [float(column[int(self.action[i])]) for i, column in enumerate(self.probabilities)]
        scaled = (self.action[len(self.probabilities) :] - self.mean) / self.deviation
        log_density = -(0.5 * scaled**2 + np.log(self.deviation) + HALF_LOG_TWO_PI).sum()
        return float(np.prod(chosen) * np.exp(log_density))

    @property
    def entropy(self) -> float:
        """Of the whole distribution, in nats; a differential one where it is continuous."""
        likely = [column[column > 0] for column in self.probabilities]
        discrete = -sum(float((column * np.log(column)).sum()) for column in likely)
        return discrete + float((np.log(self.deviation) + 0.5 + HALF_LOG_TWO_PI).sum())

    @property
    def options(self) -> list[Option]:
        """Every category of every column, in their order."""
        return [
            Option(column, category, float(probability), bool(allowed[category]), int(self.action[column]) == category)
            for column, (probabilities, allowed) in enumerate(zip(self.probabilities, self.allowed, strict=True))
            for category, probability in enumerate(probabilities)
        ]


def insight(spec: ActionSpec, params: Array, value: float, action: Array, mask: Array | None = None) -> Insight:
    """From what the network gives for one observation.

    Args:
        params: [P] logits, means, log standard deviations.
        action: [A].
        mask: [M] bool, True where allowed; None allows all.
    """
    allowed = np.ones(spec.num_logits, bool) if mask is None else mask
    logits = np.where(allowed, params[: spec.num_logits], MASKED_LOGIT).astype(np.float64)
    columns = [slice(last - size, last) for size, last in zip(spec.nvec, np.cumsum(spec.nvec), strict=True)]
    mean, log_deviation = params[spec.num_logits :].astype(np.float64).reshape(2, spec.num_box)
    return Insight(
        np.array(action),
        [_softmax(logits[column]) for column in columns],
        [allowed[column] for column in columns],
        mean,
        np.exp(log_deviation),
        float(value),
    )


def _softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max())
    probabilities: Array = exponentials / exponentials.sum()
    return probabilities


def decide(
    policy: LoadedPolicy, obs: Any, state: Memory, *, action_mask: Array | None = None, deterministic: bool = True
) -> tuple[Any, Insight]:
    """What `policy.act` gives for one observation, and why; the arguments are the same."""
    arrays, mask, _ = policy.arrays(obs, action_mask)
    params, value = policy.forward(arrays, state)
    action = policy.choose(params, mask, deterministic)[0]
    return policy.to_env(action), insight(
        policy.spec.action, params[0], value[0], action, None if mask is None else mask[0]
    )


def judge(policy: LoadedPolicy, arrays: dict[str, Array], state: Memory, action: Array, mask: Array | None) -> Insight:
    """What the policy makes of an action [A] that somebody took, on observations [1, ...] and their mask [1, M]."""
    params, value = policy.forward(arrays, state)
    return insight(policy.spec.action, params[0], value[0], action, None if mask is None else mask[0])
