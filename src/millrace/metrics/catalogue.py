"""Every figure that a run reports: its name, unit, meaning and healthy range."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        healthy: lowest and highest value that gives no cause for thought; None leaves a side open.
    """

    name: str
    unit: str
    meaning: str
    healthy: tuple[float | None, float | None] = (None, None)


_ALL = (
    Metric("env_steps", "steps", "environment transitions learned from, without resets"),
    Metric("updates", "updates", "learner updates; also the policy's version"),
    Metric("episodes", "episodes", "finished training episodes"),
    Metric("imitation_steps", "steps", "environment transitions of the player that was imitated before training"),
    Metric("time_s", "s", "since this process began to train, earlier processes of the run included"),
    Metric("episode_return", "return", "mean over the last 100 training episodes"),
    Metric("episode_length_steps", "steps", "mean over the last 100 training episodes"),
    Metric("steps_per_second", "steps/s", "environment transitions per second since the last row"),
    Metric("eval_return", "return", "mean of the last evaluation"),
    Metric("policy_loss", "", "clipped objective, negated, mean of the last epoch"),
    Metric("value_loss", "return^2", "half the mean squared error of the value"),
    Metric("entropy", "nat", "mean entropy of the action distribution", (0.001, None)),
    Metric("kl", "nat", "KL from the acting to the present policy, approximate", (None, 0.2)),
    Metric("clip_share", "", "share of rows whose ratio left the clip range", (None, 0.5)),
    Metric("effective_sample_share", "", "effective sample size of the ratios over the number of rows", (0.5, None)),
    Metric("explained_variance", "", "of the value targets by the values at collection", (0.0, None)),
    Metric("grad_norm", "", "before clipping"),
    Metric("auxiliary_loss", "", "the loss beside PPO's, its coefficient included, mean of the last epoch"),
    Metric(
        "intrinsic_reward", "return", "mean reward of a transition beside the game's, in units of the scaled reward"
    ),
    Metric("rnd_loss", "", "mean error of the network that learns what is known: falls as the game becomes familiar"),
    Metric("learning_rate", "", "Adam's step size"),
    Metric("clip", "", "range of the policy ratio"),
    Metric("policy_lag", "updates", "largest lag of a row in the last batch"),
    Metric("policy_lag_mean", "updates", "mean lag of its rows"),
    Metric("policy_lag_min", "updates", "smallest lag of its rows"),
    Metric("value_mean", "return", "mean value at collection, in units of the scaled reward"),
    Metric("target_mean", "return", "mean value target"),
    Metric("target_deviation", "return", "standard deviation of the value targets"),
    Metric("skipped_steps", "steps", "gradient steps skipped because loss or gradient was not finite", (None, 0)),
    Metric("skipped_updates", "updates", "updates skipped because no row was valid", (None, 0)),
    Metric("restarts", "restarts", "workers restarted", (None, 0)),
    Metric("lost_rollouts", "rollouts", "rollouts lost with their worker", (None, 0)),
    Metric("missing_rollouts", "rollouts", "lost ones whose rows were left invalid in a lock-step batch", (None, 0)),
    Metric("stale_rollouts", "rollouts", "rollouts dropped because they were too old", (None, 0)),
    Metric("dropped_env_steps", "steps", "transitions collected and not learned from", (None, 0)),
    Metric("bad_values", "rows", "transitions invalidated: a missing or non-finite reward or observation", (None, 0)),
    Metric("share_step", "", "of collector time: inside the environments"),
    Metric("share_inference", "", "of collector time: policy forward and sampling"),
    Metric("share_collector_other", "", "of collector time: copying and bookkeeping"),
    Metric("share_collector_wait", "", "of collector time: waiting for a grant"),
    Metric("share_learn", "", "of the trainer's time: learning"),
    Metric("share_learner_wait", "", "of the trainer's time: waiting for rollouts and assembling batches"),
    Metric("share_trainer_other", "", "of the trainer's time: metrics, checkpoints, evaluation"),
    Metric("worker_memory_mb", "MB", "largest resident memory of a worker process"),
)

CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def unhealthy(row: dict[str, float]) -> list[str]:
    """Sentences about the figures of a row that left their healthy range."""
    sentences = []
    for name, value in row.items():
        metric = CATALOGUE.get(name)
        if metric is None:
            continue
        low, high = metric.healthy
        if low is not None and value < low:
            sentences.append(f"{name} = {value:.3g} is below {low:g} ({metric.meaning})")
        elif high is not None and value > high:
            sentences.append(f"{name} = {value:.3g} is above {high:g} ({metric.meaning})")
    return sentences
