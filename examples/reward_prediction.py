"""An auxiliary loss: what actor and critic see must also tell the reward of the step to come.

    python examples/reward_prediction.py [--coef 0.5]

Where rewards are rare, the value's gradient is too; this one says at each step what matters to the reward. After
Jaderberg et al. 2016 (arXiv 1611.05397), section 3.2, who predict the sign of the reward from three frames.
"""

from __future__ import annotations

import argparse
import functools

import torch
from torch import Tensor, nn

import millrace
from millrace.learner.rows import Rows
from millrace.nets.policy import Policy
from millrace.ops.losses import weighted_mean


class RewardPrediction(nn.Module):
    """A linear layer on the policy's features and the action, and the squared error of what it says of the reward."""

    def __init__(self, policy: Policy, coef: float = 0.5) -> None:
        super().__init__()
        self.coef = coef
        self.head = nn.Linear(policy.num_features + policy.spec.action.num_columns, 1)

    def forward(self, policy: Policy, rows: Rows) -> Tensor:
        assert rows.reward is not None
        inputs = torch.cat([policy.features(rows.seen()), rows.action.float()], dim=1)
        error = (self.head(inputs).squeeze(1) - rows.reward) ** 2
        return self.coef * weighted_mean(error, rows.weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coef", type=float, default=0.5)
    coef = parser.parse_args().coef
    auxiliary = functools.partial(RewardPrediction, coef=coef) if coef else None
    millrace.train("Acrobot-v1", total_env_steps=200_000, auxiliary=auxiliary)


if __name__ == "__main__":
    main()
