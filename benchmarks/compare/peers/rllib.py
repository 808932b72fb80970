"""RLlib's new stack: PPO, which collects and learns in turn, and APPO, which does both at once.

Pong and maps are left out: its default networks take neither frames with channels first nor dicts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import ray
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env

from benchmarks.compare.peer import Figures, Job, Meter, ScoreWatch, main, with_ideal
from benchmarks.envs import make_slow_uneven

MakeEnv = Callable[[Any], Any]
MakeConfig = Callable[[int, int], AlgorithmConfig]
NETWORK = DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False)
CLIPS: dict[str, Any] = {"clip_param": 0.2, "vf_clip_param": 1e9, "grad_clip": 0.5, "vf_loss_coeff": 0.5}
"""RLlib would clip errors of values at 10, which CartPole's are above."""
BATCH = {"train_batch_size_per_learner": 8192, "minibatch_size": 2048, "num_epochs": 4, "lr": 1e-3}
AHEAD: dict[str, Any] = {
    "use_circular_buffer": False,
    "simple_queue_size": 2,
    "timeout_s_sampler_manager": 0.05,
}
"""APPO learns from every rollout once, as everybody does: a full queue stops the runners; a circular buffer would drop.
Its main thread waits for rollouts instead of asking without pause, which keeps the learner's thread from working."""
ITERATION_S = 0.5
"""How often APPO says how far it is."""
ZOO: dict[str, Any] = {
    "train_batch_size_per_learner": 256,
    "minibatch_size": 256,
    "num_epochs": 20,
    "gamma": 0.98,
    "lambda_": 0.8,
    "entropy_coeff": 0.0,
    "use_kl_loss": False,
    "lr": [[0, 1e-3], [100_000, 1e-9]],
    **CLIPS,
}
"""RL-Zoo's settings for CartPole-v1, with 8 environments and 100,000 steps; the clip range cannot fall here."""
ZOO_ENVS = 8
ZOO_STEPS = 100_000


def make_cartpole(context: Any) -> gymnasium.Env[Any, Any]:
    """CartPole-v1 without wrappers that only check."""
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


def make_native_cartpole(context: Any) -> Any:
    """A runner's copies as one array program; one alone, where RLlib asks for the spaces."""
    return CartPoleVectorEnv(num_envs=context["num_envs"]) if "num_envs" in context else make_cartpole(context)


def make_slow(context: Any) -> gymnasium.Env[Any, Any]:
    """One copy of the slow uneven game."""
    return make_slow_uneven()


def ppo(rows: int, steps: int) -> PPOConfig:
    """PPO with batches of `rows`, in rollouts of `steps`; the penalty for divergence is off."""
    settings = {**BATCH, "train_batch_size_per_learner": rows, "minibatch_size": min(rows // 4, 2048)}
    config = PPOConfig().training(**settings, **CLIPS, use_kl_loss=False)
    return config.env_runners(rollout_fragment_length=steps)


def appo(rows: int, steps: int) -> APPOConfig:
    """APPO likewise, with its V-trace; the learner is a thread of this process."""
    settings = {**BATCH, "train_batch_size_per_learner": rows, "minibatch_size": min(rows // 4, 2048)}
    config = APPOConfig().training(**settings, **AHEAD, clip_param=0.2, grad_clip=0.5)
    config.env_runners(rollout_fragment_length=steps, max_requests_in_flight_per_env_runner=2)
    return config.reporting(min_time_s_per_iteration=ITERATION_S)


def cartpole_throughput(job: Job, config: AlgorithmConfig, make_env: MakeEnv, vectorised: str) -> Figures:
    """Two runners of 64 copies each."""
    config.env_runners(num_envs_per_env_runner=64, gym_env_vectorize_mode=vectorised)
    return _metered(config, make_env, 2, job)


def slow_uneven(job: Job, make_config: MakeConfig, steps: int, rollouts: int = 0) -> Figures:
    """One runner per copy; a batch is a rollout of each, or of as many as said."""
    config = make_config((rollouts or job.copies) * steps, steps)
    return with_ideal(_metered(config, make_slow, job.copies, job), job.copies)


def time_to_475(job: Job) -> Figures:
    """RL-Zoo's settings in one process. CartPole pays 1 a step: a return is a length.

    `get_return()` would be that of the last rollout's part of the episode.
    """
    watch = ScoreWatch()

    def count(episode: Any, **_: Any) -> None:
        watch.episode(episode.t)

    config = PPOConfig().training(**ZOO).callbacks(on_episode_end=count)
    config.env_runners(num_envs_per_env_runner=ZOO_ENVS, rollout_fragment_length=32)
    algorithm = _build(config, make_cartpole, 0, job)
    env_steps = 0
    while env_steps < ZOO_STEPS and not watch.reached:
        env_steps = int(algorithm.train()["num_env_steps_sampled_lifetime"])
    figures = watch.figures(env_steps)
    _stop(algorithm)
    return figures


def _metered(config: AlgorithmConfig, make_env: MakeEnv, runners: int, job: Job) -> Figures:
    """Steps count when an update has been made since: what APPO has waiting is at most its short queue."""
    algorithm = _build(config, make_env, runners, job)
    meter, learned_rows = Meter(job.seconds), 0
    while True:
        results = algorithm.train()
        rows = int(results.get("learners", {}).get("__all_modules__", {}).get("num_module_steps_trained_lifetime", 0))
        env_steps = int(results.get("env_runners", {}).get("num_env_steps_sampled_lifetime", 0))
        if rows > learned_rows and meter.update_done(env_steps):
            break
        learned_rows = rows
    _stop(algorithm)
    return meter.figures()


def _build(config: AlgorithmConfig, make_env: MakeEnv, runners: int, job: Job) -> Any:
    """An algorithm whose learner is in this process, with as many of Ray's processors as it has runners."""
    torch.set_num_threads(1)
    ray.init("local", num_cpus=runners + 2, include_dashboard=False, logging_level="error", log_to_driver=False)
    register_env("game", make_env)
    config.environment("game").env_runners(num_env_runners=runners, sample_timeout_s=600.0).learners(num_learners=0)
    config.rl_module(model_config=NETWORK).debugging(seed=job.seed, log_level="ERROR")
    return config.build_algo()


def _stop(algorithm: Any) -> None:
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    native = {"make_env": make_native_cartpole, "vectorised": "vector_entry_point"}
    plain = {"make_env": make_cartpole, "vectorised": "sync"}
    main(
        {
            "cartpole-throughput": {
                "ppo": partial(cartpole_throughput, config=ppo(8192, 64), **plain),
                "ppo-native": partial(cartpole_throughput, config=ppo(8192, 64), **native),
                "appo-native": partial(cartpole_throughput, config=appo(8192, 64), **native),
            },
            "cartpole-time-to-475": {"zoo": time_to_475},
            "slow-uneven": {
                "ppo": partial(slow_uneven, make_config=ppo, steps=128),
                "appo": partial(slow_uneven, make_config=appo, steps=32, rollouts=4),
            },
        },
        packages=("ray", "torch", "gymnasium", "numpy"),
    )
