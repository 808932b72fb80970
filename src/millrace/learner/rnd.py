"""Novelty as a reward: random network distillation.

Source: Burda et al. 2018 (arXiv 1810.12894). One difference: the paper gives novelty a value head and a discount of
its own, and lets its return run on over ends of episodes. Here it is added to the game's reward under one value
head: it ends with the episode, and any network can be used as it is.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from millrace.buffer.batch import Batch
from millrace.config import NetConfig, RNDConfig
from millrace.learner.flat import Adam, FlatParameters
from millrace.learner.rewards import RewardScaler
from millrace.nets.dense_network import DenseBody
from millrace.nets.image_network import ImageBody
from millrace.nets.inputs import image_keys
from millrace.nets.layers import ByKey, orthogonal
from millrace.nets.policy import Normalizer
from millrace.types import Array, ArraySpec, Rollout, SlotSpec

NUM_OUTPUTS = 64
OBSERVATION_CLIP = 5.0
MINIBATCH_ROWS = 256
CHUNK_ROWS = 1024  # at a time where nothing is learned, so that the memory of images stays bounded
ADAM_EPS = 1e-5

Observations = dict[str, Array]


class RND:
    """An observation is novel while a trained network cannot say what a fixed random one makes of it.

    Both see the newest frame of the next observation, normalised by running moments and clipped to +-5. The reward is
    the squared error over the running deviation of its discounted return. Before the first batch there are
    no moments: it gives no reward. (The paper plays at random for them.)

    Args:
        net: bodies are made as the policy's are, without memory.
        device: to compute on.
    """

    def __init__(self, spec: SlotSpec, net: NetConfig, config: RNDConfig, device: str = "cpu", seed: int = 0) -> None:
        arrays = {key: newest_frame(array) for key, array in spec.observation.items()}
        self._spec = dataclasses.replace(spec, observation=arrays)
        self._config, self._device = config, device
        with torch.random.fork_rng(devices=[]):  # the policy's weights must not depend on whether this is here
            torch.manual_seed(seed)
            self._target, self._predictor = Distilled(self._spec, net), Distilled(self._spec, net)
        self._normalizer = ByKey(
            {key: Normalizer(array.shape) for key, array in arrays.items() if not array.num_classes}
        )
        self._all = nn.ModuleList([self._target, self._predictor, self._normalizer]).to(device)
        self._parameters = FlatParameters(self._predictor.parameters())
        self._optimizer = Adam(self._parameters, ADAM_EPS)
        self._scaler = RewardScaler(config.gamma)
        self._generator = torch.Generator().manual_seed(seed)
        self._batches = 0

    def reward(self, rollout: Rollout) -> Array:
        """See `millrace.learner.intrinsic.Intrinsic`."""
        if not self._batches:
            return np.zeros_like(rollout.reward)
        return np.float32(self._config.coef) * self._scaler.scale(self._novelty(rollout))

    def learn(self, batch: Batch) -> dict[str, float]:
        """See `millrace.learner.intrinsic.Intrinsic`: moments, then the deviation, then one pass of the predictor."""
        rollout = batch.rollout
        rows, index = self._next_observations(rollout), np.flatnonzero(_counts(rollout))
        for chunk in np.split(index, range(CHUNK_ROWS, len(index), CHUNK_ROWS)):
            for key, normalizer in self._normalizer.items():
                assert isinstance(normalizer, Normalizer)
                normalizer.update(torch.from_numpy(rows[key][chunk]).to(self._device))
        novelty = dataclasses.replace(rollout, reward=self._novelty(rollout))
        for worker, block in dataclasses.replace(batch, rollout=novelty).blocks():
            self._scaler.update(worker, block)
        self._batches += 1
        return {"rnd_loss": self._train(rows, index)}

    def _train(self, rows: Observations, index: Array) -> float:
        """One pass over the wanted share of the rows of an index; the mean loss."""
        order = torch.randperm(len(index), generator=self._generator).numpy()
        taken = index[order[: math.ceil(self._config.share * len(index))]]
        losses = []
        for chunk in np.split(taken, range(MINIBATCH_ROWS, len(taken), MINIBATCH_ROWS)):
            loss = self._errors(rows, chunk).mean()
            self._parameters.grad.zero_()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step(self._config.learning_rate)
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    @torch.no_grad()
    def _novelty(self, rollout: Rollout) -> Array:
        """[T, B] squared errors, 0 where a transition does not count."""
        rows = self._next_observations(rollout)
        chunks = np.split(np.arange(rollout.reward.size), range(CHUNK_ROWS, rollout.reward.size, CHUNK_ROWS))
        errors = torch.cat([self._errors(rows, chunk) for chunk in chunks]).cpu().numpy()
        return np.where(_counts(rollout), errors.reshape(rollout.reward.shape), np.float32(0))

    def _errors(self, rows: Observations, index: Array) -> Tensor:
        """[K] mean squared errors of the rows of an index."""
        seen = {key: self._prepared(key, torch.from_numpy(array[index])) for key, array in rows.items()}
        with torch.no_grad():
            wanted = self._target(seen)
        error: Tensor = (self._predictor(seen) - wanted).square().mean(1)
        return error

    def _prepared(self, key: str, array: Tensor) -> Tensor:
        array, num_classes = array.to(self._device), self._spec.observation[key].num_classes
        if num_classes:
            return nn.functional.one_hot(array.long(), num_classes).float()
        normalized: Tensor = self._normalizer[key](array.float())
        return normalized.clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)

    def _next_observations(self, rollout: Rollout) -> Observations:
        """[T * B, ...] what each transition led to."""
        arrays = self._spec.observation.items()
        return {key: rollout.present(key)[1:].reshape(-1, *array.shape) for key, array in arrays}

    def save_state(self) -> dict[str, Any]:
        """Networks, moments, optimiser, random state."""
        return {
            "batches": self._batches,
            "modules": {name: tensor.cpu().numpy().copy() for name, tensor in self._all.state_dict().items()},
            "adam": self._optimizer.save_state(),
            "scaler": self._scaler.save_state(),
            "generator": self._generator.get_state().numpy(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `save_state`."""
        self._batches = int(state["batches"])
        self._all.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in state["modules"].items()})
        self._optimizer.load_state(state["adam"])
        self._scaler.load_state(state["scaler"])
        self._generator.set_state(torch.from_numpy(np.array(state["generator"], np.uint8)))


class Distilled(nn.Module):
    """A body as the policy's, and a linear layer to the outputs that are compared."""

    def __init__(self, spec: SlotSpec, net: NetConfig) -> None:
        super().__init__()
        self.body = ImageBody(spec, net) if image_keys(spec, net) else DenseBody(spec, net)
        self.head = orthogonal(nn.Linear(self.body.num_features, NUM_OUTPUTS), math.sqrt(2))

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = self.head(self.body(observation))
        return outputs


def newest_frame(array: ArraySpec) -> ArraySpec:
    """One frame of what may be a stack; with a channel where it has none, so that convolutions take it."""
    if array.stack == 1:
        return array
    return dataclasses.replace(array, stack=1, shape=(1, *array.shape) if len(array.shape) == 2 else array.shape)


def _counts(rollout: Rollout) -> Array:
    """[T, B] whether a transition is experience, and the rollout holds the observation that it led to."""
    if rollout.bootstrap_value is None:
        return rollout.valid
    return rollout.valid & ~(rollout.terminated | rollout.truncated)
