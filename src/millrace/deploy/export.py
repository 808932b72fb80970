"""From a run or checkpoint to one file that holds the policy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace import __version__
from millrace.checkpoints.sealed import FORMAT_VERSION, brief
from millrace.deploy.archive import SUFFIX, write_archive
from millrace.deploy.onnx_policy import ONNX_SUFFIX
from millrace.deploy.policy import find_policy, load_arrays, make_actor
from millrace.deploy.record import PolicyRecord
from millrace.deploy.rllib_checkpoint import RllibCheckpoint
from millrace.errors import CheckpointError, ConfigError
from millrace.types import Array


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        source: the checkpoint.
        difference: the largest between an ONNX graph and the policy, on 1000 observations; 0 for an archive.
    """

    path: Path
    source: Path
    difference: float = 0.0


def export_policy(source: str | Path | None, out: str | Path, *, network: Any = None, trust: bool = False) -> Export:
    """Write the policy of a run, checkpoint or archive into one file.

    Args:
        source: None for the newest run.
        out: NAME.millrace, an archive of weights, normalisers, spaces and the network's description; or NAME.onnx, a
            graph for ONNX Runtime, which is compared with the policy and refused if it differs.
        network: the `nn.Module` that was trained, where it was the user's own.
        trust: whether the source may be one of RLlib's checkpoints, which are pickles.

    Raises:
        ConfigError: another kind of file. CheckpointError: the source cannot be read, or the file not be written.
    """
    target = Path(out)
    if target.suffix not in (SUFFIX, ONNX_SUFFIX):
        raise ConfigError(f"cannot write {target.name}: the name must end in {SUFFIX} or {ONNX_SUFFIX}")
    file = find_policy(source, trust)
    if isinstance(file, RllibCheckpoint) and network is None:
        network = file.network
        if network is not None and target.suffix == SUFFIX:
            raise CheckpointError(
                f"{file.path} has a network that no {SUFFIX} file describes; export NAME{ONNX_SUFFIX}"
            )
    manifest = file.verify("policy")
    data, arrays = file.read_policy()
    if not arrays:
        raise CheckpointError(f"{file.path} keeps its weights to itself; export the run that it came from")
    record = PolicyRecord.from_json(data, str(file.path))
    if target.suffix == SUFFIX:
        make_actor(record, arrays, network, str(file.path))  # so that no file is written that does not load
        write_archive(target, record.to_json(), arrays, manifest["env_steps"], __version__)
        return Export(target, file.path)
    return Export(target, file.path, _export_graph(target, record, arrays, network, manifest))


def _export_graph(
    target: Path, record: PolicyRecord, arrays: Mapping[str, Array], network: Any, manifest: Mapping[str, Any]
) -> float:
    from millrace.deploy.onnx_export import export_onnx
    from millrace.nets.torch_actor import TorchActor

    actor = TorchActor(record.spec, record.net, record.normalize_observation, network)
    try:
        load_arrays(actor, arrays)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the weights do not fit the network: {brief(error)}") from None
    written = {
        "format_version": FORMAT_VERSION,
        "millrace_version": __version__,
        "env_steps": manifest["env_steps"],
        "weights_sha256": manifest["files"]["policy.safetensors"]["sha256"],
    }
    return export_onnx(target, record, actor.policy, written)
