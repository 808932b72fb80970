"""Two policies on the same episodes, each pair apart by its difference: luck that both share cancels out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from millrace.deploy.evaluate import Evaluation
from millrace.deploy.statistics import CONFIDENCE, mean_interval, sign_flip_p
from millrace.errors import EnvError

SIGNIFICANT_P = 1 - CONFIDENCE


@dataclass(frozen=True)
class Comparison:
    """The returns of a policy less those of another, episode by episode.

    Attributes:
        interval: of the mean difference, by the bootstrap over pairs.
        p: of the sign-flip test.
        won, lost: episodes in which the policy had the higher and the lower return.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    won: int
    lost: int

    @property
    def is_distinguishable(self) -> bool:
        """Whether both the test and the interval say that chance alone hardly makes such a difference."""
        low, high = self.interval
        return self.p < SIGNIFICANT_P and (low > 0 or high < 0)

    def sentence(self, policy: str, other: str) -> str:
        """What may be said, and no more."""
        if not self.won and not self.lost:
            return f"{policy} and {other} had the same return in every episode."
        low, high = self.interval
        figures = f"{self.difference:+.4g} an episode, interval {low:.4g} .. {high:.4g}, p = {self.p:.2g}"
        if not self.is_distinguishable:
            return f"{policy} and {other} cannot be told apart by these episodes ({figures})."
        return f"{policy} is {'better' if self.difference > 0 else 'worse'} than {other} ({figures})."


def compare(policy: Evaluation, other: Evaluation, comparisons: int = 1) -> Comparison:
    """Compare what two policies made of the same seeds.

    Args:
        comparisons: how many are made together; interval and p are wider for it (Bonferroni), so that one in twenty
            such sets, not one in twenty comparisons, finds a difference where there is none.

    Raises:
        EnvError: the episodes were not the same.
    """
    seeds = [[episode.seed for episode in played.episodes] for played in (policy, other)]
    if seeds[0] != seeds[1] or min(seeds[0]) < 0:
        raise EnvError(
            "the policies did not play the same episodes, so they cannot be compared pair by pair: their seeds differ, "
            "or the environment draws its own"
        )
    differences = policy.returns - other.returns
    return Comparison(
        float(differences.mean()),
        mean_interval(differences, 1 - SIGNIFICANT_P / comparisons),
        min(1.0, sign_flip_p(differences) * comparisons),
        int(np.sum(differences > 0)),
        int(np.sum(differences < 0)),
    )
