"""A policy as an ONNX graph, which other programs run without Python, and which is checked before it is written.

Inputs, N rows each: observations as the environment gives them (`obs`, or `obs/KEY`); `action_mask` [N, M] bool where
there is one; `state` [N, S] where there is recurrence; `uniform` [N, U], random numbers in [0, 1) for sampling.
Outputs: `action` [N, A], the most probable one; `sampled_action` [N, A]; `params` [N, P], logits, means and log
standard deviations; `value` [N]; `next_state` [N, S]. Categories count from 0, continuous actions keep their bounds.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from millrace.deploy.archive import write_whole
from millrace.deploy.onnx_policy import (
    MANIFEST_KEY,
    POLICY_KEY,
    OnnxPolicy,
    digest_entry,
    input_name,
    num_uniform,
)
from millrace.deploy.record import PolicyRecord
from millrace.errors import CheckpointError, MissingExtraError
from millrace.nets.policy import Policy
from millrace.nets.recurrent_network import RecurrentNetwork
from millrace.ops.distributions import MASKED_LOGIT
from millrace.ops.sampling import JUST_BELOW_ONE
from millrace.types import ActionSpec, Array, SlotSpec

PARITY_ROWS = 1000
PARITY_TOLERANCE = 1e-5
"""Of 1, or of the largest number of an output where that is more."""
ACTION_TOLERANCE, MAX_OTHER_ACTIONS = 1e-4, 0.002


def export_onnx(path: Path, record: PolicyRecord, policy: Policy, manifest: dict[str, Any]) -> float:
    """Write a policy; the largest difference between graph and policy on 1000 random observations.

    Raises:
        CheckpointError: the network cannot be exported, differs by more than 1e-5, or the disk is full.
        MissingExtraError: the exporter is not installed.
    """
    graph = _graph(policy.eval())
    if any(isinstance(value.shape[0], int) for value in graph.graph.inputs):
        raise CheckpointError(
            "this network fixes the number of rows when it is traced: use x.shape[0] for len(x) in it"
        )
    graph.metadata_props.update({MANIFEST_KEY: json.dumps(manifest), POLICY_KEY: json.dumps(record.to_json())})
    content = _serialised(graph)
    content += digest_entry(content)
    with tempfile.TemporaryDirectory() as folder:  # what stands at the path stays until this one is known to be good
        draft = Path(folder, path.name)
        write_whole(draft, content)
        difference = parity(OnnxPolicy(draft), policy)
    if difference > PARITY_TOLERANCE:
        raise CheckpointError(
            f"the graph's outputs differ from the policy's by {difference:.2g}, more than {PARITY_TOLERANCE:g}: {path} "
            "was not written"
        )
    write_whole(path, content)
    return difference


class Graph(nn.Module):
    """What is exported: raw observations in, actions out."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy, self.spec = policy, policy.spec

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs and outputs in the order of `input_names` and `output_names`."""
        given = dict(zip(input_names(self.policy), inputs, strict=True))
        observation = {key: given[input_name(key)] for key in self.spec.observation}
        if self.policy.state_size:
            params, value, *following = _step(self.policy, observation, given["state"])
        else:
            params, value, *following = self.policy(observation)
        best, sampled = _actions(self.spec.action, params, given.get("action_mask"), given["uniform"])
        return best, sampled, params, value, *following


def input_names(policy: Policy) -> list[str]:
    """In the order that `Graph.forward` takes them."""
    spec = policy.spec
    names = [input_name(key) for key in spec.observation]
    return [*names, *["action_mask"] * spec.has_action_mask, *["state"] * bool(policy.state_size), "uniform"]


def output_names(policy: Policy) -> list[str]:
    """In the order that `Graph.forward` gives them."""
    return ["action", "sampled_action", "params", "value", *["next_state"] * bool(policy.state_size)]


def _step(policy: Policy, observation: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of recurrence, written out for our own networks: a graph of a layer over time would be larger."""
    network = policy.network
    if not isinstance(network, RecurrentNetwork):
        begins = torch.zeros(1, state.shape[0], dtype=torch.bool)  # len would fix the number of rows
        return policy.unroll(observation, state, begins)
    params, value, following = network.step(policy.all_prepared(observation), state)
    return policy.with_deviations(params), value, following


def _actions(spec: ActionSpec, params: Tensor, mask: Tensor | None, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable action and a sampled one [N, A]: `millrace.ops.sampling` in torch."""
    best, sampled, first = [], [], 0
    for column, size in enumerate(spec.nvec):
        logits = params[:, first : first + size]
        if mask is not None:
            logits = logits.masked_fill(~mask[:, first : first + size], float(MASKED_LOGIT))
        cumulative = torch.exp(logits - logits.amax(-1, keepdim=True)).cumsum(-1)
        threshold = uniform[:, column : column + 1] * cumulative[:, -1:] * float(JUST_BELOW_ONE)
        best.append(logits.argmax(-1, keepdim=True))
        sampled.append((cumulative <= threshold).sum(-1, keepdim=True))
        first += size
    if not spec.num_box:
        return torch.cat(best, 1), torch.cat(sampled, 1)
    low, high = torch.tensor(spec.low), torch.tensor(spec.high)
    mean, log_std = params[:, first : first + spec.num_box], params[:, first + spec.num_box :]
    radius, angle = uniform[:, len(spec.nvec) :].chunk(2, dim=-1)
    # Box and Muller 1958; 1 - u lies in (0, 1], so that the logarithm is finite.
    normal = torch.sqrt(-2 * torch.log(1 - radius)) * torch.cos(2 * math.pi * angle)
    best.append(mean.clamp(low, high))
    sampled.append((mean + torch.exp(log_std) * normal).clamp(low, high))
    return torch.cat([x.float() for x in best], 1), torch.cat([x.float() for x in sampled], 1)


def _graph(policy: Policy) -> Any:
    """The graph of a policy, for any number of rows."""
    example = random_inputs(policy, 3, np.random.default_rng(0))
    rows = torch.export.Dim("rows")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _without_remarks():
            warnings.simplefilter("ignore")  # its own deprecations
            program = torch.onnx.export(
                Graph(policy),
                tuple(torch.from_numpy(array) for array in example.values()),
                input_names=input_names(policy),
                output_names=output_names(policy),
                dynamic_shapes=(tuple({0: rows} for _ in example),),
                dynamo=True,
                verbose=False,
            )
    except (ModuleNotFoundError, torch.onnx.errors.OnnxExporterError) as error:
        if isinstance(error, ModuleNotFoundError) or "onnxscript" in str(error):
            raise MissingExtraError("onnxscript", "onnx", "exporting to ONNX") from None
        reason = " ".join(str(error.__cause__ or error).split())
        raise CheckpointError(f"this network cannot be exported to ONNX: {reason:.300}") from error
    assert program is not None
    return program.model


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """The exporter's log says which libraries of others it would support."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _serialised(graph: Any) -> bytes:
    import onnx_ir

    content: bytes = onnx_ir.to_proto(graph).SerializeToString()
    return content


def random_inputs(policy: Policy, num_rows: int, rng: np.random.Generator) -> dict[str, Array]:
    """Observations of every kind, masks that allow something, states and random numbers."""
    spec = policy.spec
    inputs = {input_name(key): _random_array(array, num_rows, rng) for key, array in spec.observation.items()}
    if spec.has_action_mask:
        inputs["action_mask"] = _random_mask(spec, num_rows, rng)
    if policy.state_size:
        inputs["state"] = rng.uniform(-1, 1, (num_rows, policy.state_size)).astype(np.float32)
    inputs["uniform"] = rng.random((num_rows, num_uniform(spec)), dtype=np.float32)
    return inputs


def _random_array(spec: Any, num_rows: int, rng: np.random.Generator) -> Array:
    shape, dtype = (num_rows, *spec.seen_shape), np.dtype(spec.dtype)
    if dtype.kind == "f":
        return (3 * rng.standard_normal(shape)).astype(dtype)
    high = spec.num_classes or (round(1 / spec.scale) + 1 if spec.scale != 1.0 else 2)
    return rng.integers(0, high, shape).astype(dtype)


def _random_mask(spec: SlotSpec, num_rows: int, rng: np.random.Generator) -> Array:
    mask, first = rng.random((num_rows, spec.num_mask_bits)) < 0.5, 0
    for size in spec.action.nvec:
        mask[np.arange(num_rows), first + rng.integers(0, size, num_rows)] = True
        first += size
    return mask


@torch.no_grad()
def parity(file: OnnxPolicy, policy: Policy) -> float:
    """The largest difference between the file's outputs and the policy's on random inputs, in units of the tolerance's.

    An action is another one where two categories lie closer than rounding, or a random number between them: rarely. If
    more than one in 500 is, the difference is 1.
    """
    inputs = random_inputs(policy, PARITY_ROWS, np.random.default_rng(1))
    expected = Graph(policy)(*(torch.from_numpy(array) for array in inputs.values()))
    names = output_names(policy)
    found = dict(zip(names, file.run(names, inputs), strict=True))
    differences = {name: _differences(a.numpy(), found[name]) for name, a in zip(names, expected, strict=True)}
    others = [np.mean(differences.pop(name).max(-1) > ACTION_TOLERANCE) for name in ("action", "sampled_action")]
    largest = max(float(x.max(initial=0.0)) for x in differences.values())
    return max(largest, 1.0) if max(others) > MAX_OTHER_ACTIONS else largest


def _differences(expected: Array, found: Array) -> Array:
    return np.asarray(np.abs(expected - found) / max(1.0, float(np.abs(expected).max(initial=0.0))))
