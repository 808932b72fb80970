"""Central inference as an actor of a Ray cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from typing import Any

from millrace.collect.processes import pickled
from millrace.collect.ray_actors import SIDE, InferenceActor
from millrace.collect.ray_board import RayBoard
from millrace.collect.setup import PoolSetup
from millrace.collect.wire import TOKEN_BYTES, Address
from millrace.config import RayConfig

TAKE_TIMEOUT_S = 10.0


class RayInference:
    """Starts the actor that acts for all workers, and sees to it that it has the newest weights.

    Questions and answers go past it, over TCP (`millrace.collect.wire`).

    Attributes:
        address: where it is asked; None before the first one listens.
    """

    def __init__(self, setup: PoolSetup, config: RayConfig, board: RayBoard, path: list[str]) -> None:
        import ray

        self._setup, self._config, self._board, self._path = setup, config, board, path
        self._maker: Any = ray.put(pickled(setup.actor_maker))
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self.address: Address | None = None
        self._serving: Any = None
        self._told_version = -1
        board.listener = self.tell_weights

    @property
    def gpus(self) -> float:
        """That it reserves."""
        import ray

        wanted = self._config.inference_gpus
        if wanted >= 0:
            return wanted
        has_any = ray.cluster_resources().get("GPU", 0) >= 1
        return 1.0 if has_any and self._setup.actor_maker.needs_torch else 0.0

    @property
    def resources(self) -> dict[str, float]:
        """That it reserves, by Ray's names."""
        gpus = self.gpus
        return {"CPU": self._config.inference_cpus} | ({"GPU": gpus} if gpus else {})

    def new_actor(self) -> Any:
        import ray

        resources = {"num_cpus": self._config.inference_cpus, "num_gpus": self.gpus}
        return ray.remote(concurrency_groups={SIDE: 1}, **resources)(InferenceActor).remote()

    def open(self, actor: Any) -> Any:
        """Have it make everything and listen; the call, which comes to its address."""
        part, version = self._setup.for_inference(), self._board.version
        self._told_version = version
        return actor.open.remote(
            dataclasses.replace(part, device="cuda" if self.gpus else "cpu"),
            self._maker,
            self._path,
            self._setup.exchange_layout,
            self._token,
            self._config.inference_port,
            version,
            self._board.ref(version),
        )

    def serve(self, actor: Any, address: Address) -> Any:
        """Have it answer; the call, which ends with it."""
        self.address, self._serving = address, actor
        call = actor.serve.remote()
        self.tell_weights()  # those that were published while it started
        return call

    def tell_weights(self) -> None:
        """Whoever acts for all has the newest weights before anything is granted with them."""
        import ray
        from ray.exceptions import RayError

        version = self._board.version
        if self._serving is None or self._told_version == version:
            return
        call = self._serving.take.options(concurrency_group=SIDE).remote(version, self._board.ref(version))
        with contextlib.suppress(RayError):  # its death is noticed where it is awaited
            ray.get(call, timeout=TAKE_TIMEOUT_S)
        self._told_version = version

    def forget(self, actor: Any) -> None:
        """It has ended."""
        if actor is self._serving:
            self._serving = None

    def close(self) -> None:
        """Let go of what lies in the object store."""
        self._maker = None
