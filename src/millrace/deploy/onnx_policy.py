"""A policy in an ONNX file, run by ONNX Runtime: neither torch nor anything else of training is needed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from millrace.checkpoints.sealed import FORMAT_VERSION, brief
from millrace.errors import CheckpointError, MissingExtraError
from millrace.nets.inputs import WeightsIndex
from millrace.types import Array, SlotSpec

ONNX_SUFFIX = ".onnx"
MAX_BYTES = 1 << 29
MANIFEST_KEY, POLICY_KEY, DIGEST_KEY = "millrace.manifest", "millrace.policy", "millrace.sha256"


@dataclass(frozen=True)
class OnnxPolicy:
    """One file on disk, written by `millrace export RUN NAME.onnx`.

    Its last metadata entry is the digest of everything before it, so that a damaged file is known before it is run.
    """

    path: Path

    def verify(self, part: str = "") -> dict[str, Any]:
        """Compare the file with its digest and return the manifest.

        Raises:
            CheckpointError: missing, damaged, of a newer format, or not ours.
        """
        try:
            manifest: dict[str, Any] = json.loads(self._metadata[MANIFEST_KEY])
            version, writer = int(manifest["format_version"]), str(manifest["millrace_version"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} is not a policy: {brief(error)}") from None
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{self.path} has format {version}, this Millrace reads up to {FORMAT_VERSION}: it was written by "
                f"millrace {writer:.40}; install that or a later one"
            )
        return manifest

    def read_policy(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The policy's description; its weights stay inside.

        Raises:
            CheckpointError: as `verify`.
        """
        self.verify()
        try:
            record: dict[str, Any] = json.loads(self._metadata[POLICY_KEY])
        except (KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path} is not a policy: {brief(error)}") from None
        return record, {}

    def make_actor(self, spec: SlotSpec) -> OnnxActor:
        """What acts."""
        return OnnxActor(self, self._session, spec)

    def run(self, outputs: list[str], inputs: dict[str, Array]) -> list[Array]:
        """Outputs of the graph by name."""
        found: list[Array] = self._session.run(outputs, inputs)
        return found

    @property
    def _metadata(self) -> dict[str, str]:
        metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return metadata

    @cached_property
    def _session(self) -> Any:
        """Made once: it is the larger part of the time."""
        content = self._checked_content()
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise MissingExtraError("onnxruntime", "onnx", f"running {self.path.name}") from None
        options = onnxruntime.SessionOptions()
        # A policy is small: threads would cost more than they save.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            # Its fallback prints, and tries the same again.
            return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:  # its exceptions have no common base
            raise CheckpointError(f"{self.path} is not a policy that ONNX Runtime runs: {brief(error)}") from None

    def _checked_content(self) -> bytes:
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise CheckpointError(f"{self.path} is larger than the {MAX_BYTES >> 20} MB that a policy may have")
            content = self.path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from None
        length = len(digest_entry(b""))
        if content[-length:] != digest_entry(content[:-length]):
            raise CheckpointError(
                f"{self.path} is damaged, or was not written by `millrace export`: its digest differs; export it again"
            )
        return content


def digest_entry(content: bytes) -> bytes:
    """A metadata entry with the digest of an ONNX model's bytes, to be appended to them.

    In protocol buffers, appending a field to a message adds it; `metadata_props` is the field 14 of the model, an
    entry's key the field 1 and its value the field 2 (onnx.proto).
    """
    key, value = DIGEST_KEY.encode(), hashlib.sha256(content).hexdigest().encode()
    entry = bytes([1 << 3 | 2, len(key)]) + key + bytes([2 << 3 | 2, len(value)]) + value
    return bytes([14 << 3 | 2, len(entry)]) + entry


class OnnxActor:
    """An `Actor` by ONNX Runtime, whose weights came with the graph."""

    def __init__(self, file: OnnxPolicy, session: Any, spec: SlotSpec) -> None:
        self._file, self._session, self._spec = file, session, spec
        inputs = {value.name: value.shape for value in session.get_inputs()}
        self.state_size = int(inputs["state"][1]) if "state" in inputs else 0
        self.index: WeightsIndex = ()
        self._outputs = ["params", "value", *(["next_state"] if self.state_size else [])]
        self._constant: dict[str, Array] = {}

    def __reduce__(self) -> Any:
        """To other processes it travels as its file's name, for sessions do not."""
        return _actor_of, (self._file.path, self._spec)

    def load(self, weights: Array) -> None:
        """Nothing: there are none to take."""

    def forward(self, observation: dict[str, Array], state: Array | None = None) -> tuple[Array, Array]:
        num_rows = len(next(iter(observation.values())))
        feed = {input_name(key): np.ascontiguousarray(array) for key, array in observation.items()}
        if state is not None:
            feed["state"] = state
        params, value, *following = self._session.run(self._outputs, feed | self._unused(num_rows))
        if state is not None:
            state[...] = following[0]
        return params, value

    def _unused(self, num_rows: int) -> dict[str, Array]:
        """Inputs that only the graph's own actions need; here `millrace.ops.sampling` chooses."""
        if len(next(iter(self._constant.values()), ())) != num_rows:
            self._constant = {"uniform": np.zeros((num_rows, num_uniform(self._spec)), np.float32)}
            if self._spec.has_action_mask:
                self._constant["action_mask"] = np.ones((num_rows, self._spec.num_mask_bits), bool)
        return self._constant


def _actor_of(path: Path, spec: SlotSpec) -> OnnxActor:
    return OnnxPolicy(path).make_actor(spec)


def input_name(key: str) -> str:
    """The graph's name of an observation array."""
    return "obs" if key == "obs" else f"obs/{key}"


def num_uniform(spec: SlotSpec) -> int:
    """Uniform random numbers in [0, 1) that a sampled action takes: one a category, two a continuous number."""
    return len(spec.action.nvec) + 2 * spec.action.num_box
