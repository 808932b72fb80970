"""The connection to a Ray cluster: one that is there, or one of this machine alone that is started for the run."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import math
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace import system
from millrace.config import Config, RayConfig
from millrace.errors import ConfigError, MillraceError, MissingExtraError

ADDRESS_VARIABLE = "RAY_ADDRESS"
AUTH_VARIABLE = "RAY_AUTH_MODE"  # with an explicit address Ray shows its token only where this says so
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit`, which carries code of its own
NOT_CARRIED = ["/runs/", ".git/", ".venv/", "__pycache__/"]
CONNECT_TIMEOUT_S = 90.0
MEBIBYTE = 2**20


class RaySession:
    """Begins at once, beside whatever the caller does next; `wait` is where it must be there.

    Attributes:
        is_ours: whether this run started the cluster, which then ends with it.
        dashboard_url: of the cluster; empty where it has none.
    """

    def __init__(self, config: Config) -> None:
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError("Ray", "ray", "collecting on a cluster")
        self._settings = config
        self._config = config.ray
        self._working_dir = config.ray.working_dir or _directory_of(config.env.id)
        is_alone = config.engine == "rllib"  # which trains on this machine
        self.address = "" if is_alone else config.ray.address or os.environ.get(ADDRESS_VARIABLE, "")
        self.is_ours, self.dashboard_url = False, ""
        self._has_connected = False
        self._problem: Exception | None = None
        self._has_tried, self._is_over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._begin, name="ray-session", daemon=True)
        self._thread.start()

    def is_for(self, config: Config) -> bool:
        """Whether it would be the same for these settings."""
        return self._settings == config

    def wait(self) -> None:
        """Return as soon as there is a cluster.

        Raises:
            ConfigError: none is to be had.
        """
        if not self._has_tried.wait(CONNECT_TIMEOUT_S):
            raise ConfigError(f"Ray at {self.address or 'this machine'} did not answer within {CONNECT_TIMEOUT_S:g} s")
        if isinstance(self._problem, MillraceError):
            raise self._problem
        if self._problem is not None:
            raise ConfigError(f"no Ray cluster{self._where}: {self._advice(self._problem)}") from self._problem

    @property
    def _where(self) -> str:
        return f" at {self.address}" if self.address else " could be started"

    def _advice(self, problem: Exception) -> str:
        text = " ".join(str(problem).split())
        if self.address and isinstance(problem, ConnectionError):
            wants_token = "" if AUTH_VARIABLE in os.environ else f"set {AUTH_VARIABLE}=token if it wants a token, "
            return (
                f"{wants_token}start one with `ray start --head`, give --ray.address HOST:6379, or leave it out for "
                f"one of this machine ({text})"
            )
        return text

    def _begin(self) -> None:
        try:
            self._connect()
        except Exception as error:
            self._problem = error
        self._has_tried.set()
        # On Linux the cluster's processes are ended with the thread that started them, however that one ends.
        self._is_over.wait()

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():  # by the caller, who also ends it
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address:
            context = ray.init(self.address, runtime_env=self._runtime_env(), **quiet)
        else:
            # A cluster that somebody else started on this machine is none of ours.
            with system.environment(RAY_USAGE_STATS_ENABLED="0"):
                context = ray.init("local", **self._local(self._config), **quiet)
            self.is_ours = True
        self.dashboard_url = getattr(context, "dashboard_url", "") or ""
        self._has_connected = True

    def _local(self, config: RayConfig) -> dict[str, Any]:
        """How large a cluster of this machine alone is: large enough for what is asked of it."""
        settings: dict[str, Any] = {
            "num_cpus": config.num_cpus or max(system.available_cores(), math.ceil(_cpus_wanted(self._settings))),
            "include_dashboard": config.dashboard,
        }
        if config.dashboard:
            settings["dashboard_port"] = config.dashboard_port
        if config.object_store_memory_mb:
            settings["object_store_memory"] = config.object_store_memory_mb * MEBIBYTE
        if config.pip:
            settings["runtime_env"] = {"pip": list(config.pip)}
        return settings

    def _runtime_env(self) -> dict[str, Any]:
        """What the nodes need besides Millrace, which is installed there."""
        env: dict[str, Any] = {"pip": list(self._config.pip)} if self._config.pip else {}
        if self._working_dir and JOB_VARIABLE not in os.environ:
            env |= {"working_dir": self._working_dir, "excludes": NOT_CARRIED}
        return env

    def workers_that_fit(self) -> int:
        """How many the cluster has room for beside central inference, at least one."""
        self.wait()
        import ray

        left = ray.cluster_resources().get("CPU", 1.0) - _inference_cpus(self._settings)
        return max(1, int(left / self._config.worker_cpus))

    def describe(self) -> str:
        """Which cluster it is, in half a line."""
        import ray

        resources, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
        store = resources.get("object_store_memory", 0.0) / 2**30
        where = "of this machine, for this run" if self.is_ours else f"at {self.address or 'the one that is connected'}"
        gpus = f", {resources['GPU']:g} GPUs" if resources.get("GPU") else ""
        url = f", dashboard http://{self.dashboard_url}" if self.dashboard_url else ""
        count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
        return f"{where}: {count}, {resources.get('CPU', 0):g} CPUs{gpus}, {store:.1f} GiB object store{url}"

    def close(self) -> None:
        """Disconnect from what we connected to; a cluster of ours ends."""
        self._has_tried.wait(CONNECT_TIMEOUT_S)
        if self._has_connected:
            import ray

            with contextlib.suppress(Exception):
                ray.shutdown()
        self._has_connected = False
        self._is_over.set()


_begun: list[RaySession] = []


def begin(config: Config) -> RaySession:
    """The session that was begun for these settings and that nobody has yet, or a new one.

    The command line begins one before it imports what training needs: starting a cluster is mostly waiting.
    """
    while _begun:
        session = _begun.pop()
        if session.is_for(config):
            return session
        session.close()
    return RaySession(config)


def begin_early(config: Config) -> None:
    """Begin a session that the next `begin` for these settings is given."""
    _begun[:] = [RaySession(config)]


def why_no_room(wants: Mapping[str, float]) -> str:
    """What an actor waits for that wants these resources; empty where it may come at any moment."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    if all(free.get(name, 0.0) >= amount for name, amount in wants.items()):
        return ""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    what = " and ".join(_amount(name, amount) for name, amount in wants.items())
    left = ", ".join(
        f"{_amount(name, free.get(name, 0.0))} of {total.get(name, 0.0):g}" for name in wants if name != "memory"
    )
    if "memory" in wants:
        left += f", {_amount('memory', free.get('memory', 0.0))}"
    count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    nowhere = "" if any(_fits(wants, node) for node in nodes) else ", and no node has that much at all"
    return (
        f"each wants {what}, and the cluster of {count} has {left} free{nowhere}; add nodes, or lower "
        "ray.worker_cpus, ray.worker_memory_mb or collect.workers"
    )


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB of memory" if name == "memory" else f"{amount:g} {name}"


def _fits(wants: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in wants.items())


def _cpus_wanted(config: Config) -> float:
    """By all actors of the run together."""
    workers = config.collect.workers or max(1, system.available_cores() - 1)
    if config.engine == "rllib":  # one each for its runners and its learner
        return workers + 1.0
    return workers * config.ray.worker_cpus + _inference_cpus(config)


def _inference_cpus(config: Config) -> float:
    return config.ray.inference_cpus if config.collect.inference != "local" else 0.0


def _directory_of(env_id: str) -> str:
    """Where a user's `module:function` lies, if it is not installed; empty otherwise."""
    module, colon, _ = env_id.partition(":")
    if not colon or module == "__main__":
        return ""
    top = module.partition(".")[0]
    found = importlib.machinery.PathFinder.find_spec(top, ["", *sys.path])  # where `--env module:function` looks too
    if found is None or found.origin is None:
        return ""
    directory = Path(found.origin).resolve().parent
    directory = directory.parent if found.submodule_search_locations else directory
    is_installed = any(part in ("site-packages", "dist-packages") for part in directory.parts)
    return "" if is_installed or directory.is_relative_to(Path(sys.base_prefix).resolve()) else str(directory)
