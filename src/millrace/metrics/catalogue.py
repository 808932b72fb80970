"""Every figure that a run reports: its name, unit, meaning and healthy range."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        healthy: lowest and highest value that gives no cause for thought; None leaves a side open.
        below, above: what to change where it lies there.
    """

    name: str
    unit: str
    meaning: str
    healthy: tuple[float | None, float | None] = (None, None)
    below: str = ""
    above: str = ""

    def side(self, value: float) -> str:
        """`below` or `above` the healthy range, or empty; what is not a number is in no range."""
        low, high = self.healthy
        if low is not None and value < low:
            return "below"
        return "above" if high is not None and value > high else ""

    def remedy(self, side: str) -> str:
        """What to change on a side of the healthy range."""
        return {"below": self.below, "above": self.above}[side]


_FRESHER = "lower --max-policy-lag or --replay.samples_per_insert"
_SMALLER_STEPS = "lower --ppo.learning_rate or --ppo.epochs"
_WORKERS = "`log.txt` and `crashes/` in the run's directory say why; `millrace replay FILE` plays it again"

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
    Metric(
        "entropy",
        "nat",
        "mean entropy of the action distribution",
        (0.001, None),
        below="raise --ppo.entropy_coef (0.01 is a usual start), or lower --ppo.learning_rate",
    ),
    Metric(
        "kl",
        "nat",
        "KL from the acting to the present policy, approximate",
        (None, 0.2),
        above=f"the acting policy is far behind, or updates are too large: {_FRESHER}, or {_SMALLER_STEPS}",
    ),
    Metric(
        "kl_proximal",
        "nat",
        "KL from the policy before the update to the present one, approximate",
        (None, 0.1),
        above=f"updates are too large: {_SMALLER_STEPS}",
    ),
    Metric("clip_share", "", "share of rows whose ratio left the clip range", (None, 0.5), above=_SMALLER_STEPS),
    Metric(
        "effective_sample_share",
        "",
        "effective sample size of the ratios over the number of rows",
        (0.5, None),
        below=f"few rows carry all the weight, since the acting policy is another one: {_FRESHER}, or {_SMALLER_STEPS}",
    ),
    Metric(
        "ratio_tail_share",
        "",
        "share of rows whose action the present policy takes twice or half as often as the acting one",
        (None, 0.2),
        above=f"what is learned from is stale: {_FRESHER}, or a --ppo.age_weight below 1",
    ),
    Metric(
        "explained_variance",
        "",
        "of the value targets by the values at collection",
        (0.0, None),
        below="the value has collapsed or never learned: --ppo.normalize_reward true for large rewards, "
        "--ppo.normalize_observation true for observations of unlike sizes, a lower --ppo.learning_rate",
    ),
    Metric(
        "value_scale",
        "",
        "standard deviation of the values over that of their targets",
        (0.05, 3.0),
        below="the value says the same of everything: --ppo.normalize_reward true, a higher --ppo.value_coef, or a "
        "lower --ppo.learning_rate",
        above="the value runs away from its targets: a lower --ppo.learning_rate, --ppo.normalize_reward true, or "
        "fewer --replay.samples_per_insert",
    ),
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
    Metric(
        "skipped_steps",
        "steps",
        "gradient steps skipped because loss or gradient was not finite",
        (None, 0),
        above="look for huge observations or rewards with `millrace check-env ENV`; --ppo.normalize_observation true, "
        "--ppo.reward_clip 10, or a lower --ppo.learning_rate",
    ),
    Metric(
        "skipped_updates",
        "updates",
        "updates skipped because no row was valid",
        (None, 0),
        above=f"every worker was lost at once: {_WORKERS}",
    ),
    Metric("restarts", "restarts", "workers restarted", (None, 0), above=_WORKERS),
    Metric("lost_rollouts", "rollouts", "rollouts lost with their worker", (None, 0), above=_WORKERS),
    Metric(
        "missing_rollouts",
        "rollouts",
        "lost ones whose rows were left invalid in a lock-step batch",
        (None, 0),
        above=_WORKERS,
    ),
    Metric(
        "stale_rollouts",
        "rollouts",
        "rollouts dropped because they were too old",
        (None, 0),
        above="--collect.on_stale wait, a higher --max-policy-lag, or fewer --workers",
    ),
    Metric("dropped_env_steps", "steps", "transitions collected and not learned from", (None, 0)),
    Metric(
        "weight_mismatches",
        "rollouts",
        "rollouts whose worker acted with other weights than those published under that version",
        (None, 0),
        above="memory or a worker is damaged: restart the run from its checkpoint",
    ),
    Metric(
        "stale_weights",
        "rollouts",
        "rollouts whose worker acted with older weights than were published when it was told to begin",
        (None, 0),
        above="the worker does not take new weights: restart the run from its checkpoint",
    ),
    Metric("worker_lag", "updates", "by which the weights that some worker acted with last are behind"),
    Metric("rollout_latency_s", "s", "from the grant of a rollout to its arrival, mean of the last 100"),
    Metric("replay_items", "items", "held by the replay buffer"),
    Metric("replay_overwritten", "items", "that made room for newer ones"),
    Metric("replay_unseen", "items", "of those, never drawn"),
    Metric("replay_blocked", "times", "that no rollout was granted: the buffer was full, or inserts ahead of draws"),
    Metric("samples_per_insert", "draws", "of an item so far, on average"),
    Metric("target_age", "updates", "mean age of the cached errors behind drawn steps"),
    Metric(
        "bad_values",
        "rows",
        "transitions invalidated: a missing or non-finite reward or observation",
        (None, 0),
        above="--env.on_bad_value refuse stops at the first with a crash file for `millrace replay`",
    ),
    Metric("share_step", "", "of collector time: inside the environments"),
    Metric("share_inference", "", "of collector time: policy forward and sampling"),
    Metric("share_collector_other", "", "of collector time: copying and bookkeeping"),
    Metric(
        "share_collector_wait",
        "",
        "of collector time: waiting for a grant",
        (None, 0.9),
        above="fewer --ppo.epochs, a larger --ppo.minibatch_size, or fewer --workers and more --ppo.threads",
    ),
    Metric("share_learn", "", "of the trainer's time: learning"),
    Metric(
        "share_learner_wait",
        "",
        "of the trainer's time: waiting for rollouts and assembling batches",
        (None, 0.8),
        above="more --workers or --envs-per-worker, or the game's own vector form",
    ),
    Metric(
        "share_trainer_other",
        "",
        "of the trainer's time: metrics, checkpoints, evaluation",
        (None, 0.3),
        above="evaluate and save less often: --eval.every_env_steps, --checkpoint.every_s",
    ),
    Metric(
        "worker_memory_mb",
        "MB",
        "largest resident memory of a worker process",
        above="fewer --workers or --envs-per-worker; where it grows, the environment keeps what it should let go",
    ),
)

CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def unhealthy(row: dict[str, float]) -> list[str]:
    """Sentences about the figures of a row that left their healthy range."""
    sentences = []
    for name, value in row.items():
        metric = CATALOGUE.get(name)
        side = metric.side(value) if metric else ""
        if metric and side:
            limit = metric.healthy[side == "above"]
            sentences.append(f"{name} = {value:.3g} is {side} {limit:g} ({metric.meaning})")
    return sentences
