"""What a user of RLlib has of their own: environments, and a module that is none of RLlib's."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.multi_agent_env import MultiAgentEnv


class Drawn(gym.Env):
    """Observations drawn from the space, episodes of ten steps."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 10, False, {}


class Masked(Drawn):
    """A mask in the form that RLlib's module for masks wants."""

    def __init__(self, _config) -> None:
        parts = {"action_mask": spaces.Box(0.0, 1.0, (3,)), "observations": spaces.Box(-1.0, 1.0, (4,))}
        super().__init__(spaces.Dict(parts), spaces.Discrete(3))

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return self._with_mask(observation), info

    def step(self, action):
        observation, *rest = super().step(action)
        return (self._with_mask(observation), *rest)

    def _with_mask(self, observation):
        mask = np.ones(3, np.float32)
        mask[self.steps % 3] = 0.0
        return {**observation, "action_mask": mask}


class Parts(Drawn):
    """Parts of all kinds, in another order than RLlib's, and two categories to choose."""

    def __init__(self, _config) -> None:
        found = {
            "z": spaces.Discrete(3),
            "kinds": spaces.MultiDiscrete([2, 4]),
            "a": spaces.Box(-1.0, 1.0, (2, 2)),
            "pixels": spaces.Box(0, 255, (3,), np.uint8),
        }
        super().__init__(spaces.Dict(list(found.items())), spaces.MultiDiscrete([2, 3]))


class Pictures(Drawn):
    """Small images."""

    def __init__(self, _config) -> None:
        super().__init__(spaces.Box(0.0, 1.0, (10, 10, 3)), spaces.Discrete(2))


class Numbers(Drawn):
    """A vector to a number of an unsymmetric range."""

    def __init__(self, _config) -> None:
        super().__init__(spaces.Box(-1.0, 1.0, (4,)), spaces.Box(-1.0, 5.0, (1,)))


class Two(MultiAgentEnv):
    """Two agents with spaces of their own."""

    def __init__(self, _config=None) -> None:
        super().__init__()
        self.agents = self.possible_agents = ["left", "right"]
        self.observation_spaces = {"left": spaces.Box(-1.0, 1.0, (2,)), "right": spaces.Box(-1.0, 1.0, (3,))}
        self.action_spaces = {"left": spaces.Discrete(2), "right": spaces.Box(0.0, 4.0, (1,))}
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return {agent: space.sample() for agent, space in self.observation_spaces.items()}, {}

    def step(self, action_dict):
        self.steps += 1
        done = {"__all__": self.steps == 10}
        observation = {agent: space.sample() for agent, space in self.observation_spaces.items()}
        return observation, dict.fromkeys(self.agents, 1.0), done, {"__all__": False}, {}


class OwnModule(TorchRLModule, ValueFunctionAPI):
    """No encoder, a sine where others have tanh."""

    def setup(self):
        self.layer = torch.nn.Linear(self.observation_space.shape[0], 8)
        self.policy = torch.nn.Linear(8, 2)
        self.value = torch.nn.Linear(8, 1)

    def _forward(self, batch, **kwargs):
        return {"action_dist_inputs": self.policy(torch.sin(self.layer(batch["obs"])))}

    def compute_values(self, batch, embeddings=None):
        return self.value(torch.sin(self.layer(batch["obs"]))).squeeze(-1)
