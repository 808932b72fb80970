"""Stable-Baselines3, and the maskable PPO of its sb3-contrib."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from benchmarks.compare.networks import MapBody
from benchmarks.compare.peer import Figures, Job, Meter, ScoreWatch, main, with_ideal
from benchmarks.envs import MapEnv, make_pong, make_slow_uneven

FOREVER = 1_000_000_000
NETWORK = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh}
THROUGHPUT: dict[str, Any] = {"n_steps": 128, "batch_size": 2048, "n_epochs": 4}
ZOO: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 20,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "ent_coef": 0.0,
    "learning_rate": LinearSchedule(1e-3, 0.0, 1.0),
    "clip_range": LinearSchedule(0.2, 0.0, 1.0),
}
"""RL-Zoo's settings for CartPole-v1, with 8 environments and 100,000 steps."""
ZOO_ENVS = 8
ZOO_STEPS = 100_000
SLOW: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "n_epochs": 4}
PIXELS: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "ent_coef": 0.01, "clip_range": 0.1}
PIXEL_ENVS = 8


class MapFeatures(BaseFeaturesExtractor):  # type: ignore[misc, unused-ignore]  # checked without SB3
    """The body for maps and vectors; it scales the maps itself."""

    def __init__(self, observation_space: gymnasium.spaces.Dict) -> None:
        super().__init__(observation_space, features_dim=MapBody.num_features)
        self._body = MapBody()

    def forward(self, observation: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._body(**observation)


class MeterUpdates(BaseCallback):  # type: ignore[misc, unused-ignore]  # checked without SB3
    """Tells the meter of each update: SB3 begins the next rollout when an update has ended."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        self._done = False

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self._done = self._meter.update_done(self.num_timesteps)

    def _on_step(self) -> bool:
        return not self._done


class WatchScore(BaseCallback):  # type: ignore[misc, unused-ignore]  # checked without SB3
    """Counts the returns that `Monitor` measured inside the environments, and stops at the score."""

    def __init__(self, watch: ScoreWatch) -> None:
        super().__init__()
        self._watch = watch

    def _on_step(self) -> bool:
        if not self.locals["dones"].any():
            return True
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return not any(self._watch.episode(episode_return) for episode_return in ended)


def throughput(job: Job) -> Figures:
    """CartPole-v1 without wrappers that only check, 64 copies in one process; learning may use both cores."""
    torch.set_num_threads(2)
    envs = DummyVecEnv([lambda: gymnasium.make("CartPole-v1", disable_env_checker=True)] * 64)
    return _metered(envs, THROUGHPUT, job)


def slow_uneven(job: Job) -> Figures:
    """One process per copy; all of them wait for the slowest at every step."""
    torch.set_num_threads(1)
    return with_ideal(_metered(SubprocVecEnv([make_slow_uneven] * job.copies), SLOW, job), job.copies)


def pong(job: Job) -> Figures:
    """Eight copies in one process; SB3's own Nature CNN of 512."""
    torch.set_num_threads(2)
    return _metered(DummyVecEnv([make_pong] * PIXEL_ENVS), PIXELS, job, "CnnPolicy", {})


def maps(job: Job, algorithm: type = PPO) -> Figures:
    """Eight copies in one process."""
    torch.set_num_threads(2)
    network = {"features_extractor_class": MapFeatures, "net_arch": [], "normalize_images": False}
    return _metered(DummyVecEnv([MapEnv] * PIXEL_ENVS), PIXELS, job, "MultiInputPolicy", network, algorithm)


def time_to_475(job: Job) -> Figures:
    """RL-Zoo's settings."""
    torch.set_num_threads(1)
    watch = ScoreWatch()
    envs = make_vec_env("CartPole-v1", ZOO_ENVS, seed=job.seed)
    model = PPO("MlpPolicy", envs, device="cpu", seed=job.seed, **ZOO)
    model.learn(ZOO_STEPS, callback=WatchScore(watch))
    return watch.figures(model.num_timesteps)


def _metered(
    envs: VecEnv,
    settings: dict[str, Any],
    job: Job,
    policy: str = "MlpPolicy",
    network: dict[str, Any] = NETWORK,
    algorithm: type = PPO,
) -> Figures:
    meter = Meter(job.seconds)
    model = algorithm(policy, envs, device="cpu", seed=job.seed, policy_kwargs=network, **settings)
    model.learn(FOREVER, callback=MeterUpdates(meter))
    envs.close()
    return meter.figures()


if __name__ == "__main__":
    main(
        {
            "cartpole-throughput": {"dummy": throughput},
            "cartpole-time-to-475": {"zoo": time_to_475},
            "slow-uneven": {"subproc": slow_uneven},
            "pong": {"dummy": pong},
            "dict": {"dummy": maps, "dummy-masked": partial(maps, algorithm=MaskablePPO)},
        },
        packages=("stable-baselines3", "sb3-contrib", "torch", "gymnasium", "ale-py", "numpy"),
    )
