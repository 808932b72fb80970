"""The files below docs/cluster/ are what Ray's cluster launcher and KubeRay take."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.main import COMMANDS

from .conftest import ROOT

yaml = pytest.importorskip("yaml")
FOLDER = ROOT / "docs" / "cluster"
LAUNCHER = [path for path in sorted(FOLDER.glob("*.yaml")) if not path.name.startswith("kuberay")]
KUBERAY = sorted(FOLDER.glob("kuberay-*.yaml"))

# As KubeRay 1.5 documents them (docs/reference/api.md of ray-project/kuberay).
JOB_FIELDS = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
CLUSTER_FIELDS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
HEAD_FIELDS = {"rayStartParams", "template"}
GROUP_FIELDS = {*HEAD_FIELDS, "groupName", "replicas", "minReplicas", "maxReplicas"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def cluster_of(document: Any) -> Any:
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_launcher_files_fit_the_schema_that_ray_ships(path: Path) -> None:
    ray, jsonschema = importlib.util.find_spec("ray"), pytest.importorskip("jsonschema")
    if ray is None or ray.origin is None:
        pytest.skip("Ray is not installed")
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(read(path), schema)


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_launched_clusters_ask_for_a_token_and_bring_it_to_every_node(path: Path) -> None:
    document = read(path)
    starts = [
        command
        for where in ("head", "worker")
        for command in document[f"{where}_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token") for command in starts)
    assert "~/.ray/auth_token" in document["file_mounts"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kubernetes_files_use_fields_that_kuberay_has(path: Path) -> None:
    document = read(path)
    assert document["apiVersion"] == "ray.io/v1"
    if document["kind"] == "RayJob":
        assert set(document["spec"]) == JOB_FIELDS
    cluster = cluster_of(document)
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) == HEAD_FIELDS
    assert all(set(group) == GROUP_FIELDS for group in cluster["workerGroupSpecs"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_all_pods_of_a_cluster_run_the_same_image(path: Path) -> None:
    cluster = cluster_of(read(path))
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1


def test_the_job_runs_a_command_that_there_is() -> None:
    words = shlex.split(read(FOLDER / "kuberay-job.yaml")["spec"]["entrypoint"])
    assert words[0] == "millrace"
    assert words[1] in COMMANDS
    assert words[words.index("--backend") + 1] == "ray"
