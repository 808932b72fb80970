"""Is this machine fit to train on: what there is, and what is to be thought of it.

Facts are gathered apart from what is said about them, so that each sentence can be provoked by a fact.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace import system
from millrace.doctor.findings import Finding
from millrace.doctor.packages import extra_findings, version_findings

MB, GB = 2**20, 2**30
START_TIMEOUT_S = 60.0
WRITTEN_BYTES = 16 * MB
# Ours: a small run holds some 500 MB, torch 300 of them and 40 for each worker without it (benchmarks/README.md).
LITTLE_MEMORY_BYTES = GB
LITTLE_DISK_BYTES, NO_DISK_BYTES = GB, 100 * MB
SLOW_DISK_BYTES_PER_S = 20 * MB
LITTLE_GPU_BYTES = GB
FEW_FILES = 256
SHARED_MEMORY = Path("/dev/shm")
RAY_SESSIONS = Path(tempfile.gettempdir()) / "ray"
RAY_PROCESSES = ("raylet", "gcs_server")
TORCH_SCRIPT = """
import json, torch
devices = [[torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)] for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda or "", "devices": devices}))
"""


@dataclass(frozen=True)
class Machine:
    """Facts. Bytes are 0 where the system does not tell.

    Attributes:
        core_quota: cores of time that the container may use; None without a limit.
        shared_bytes: size of the memory file system, and what is left; None where there is none.
        shared_leftovers: named segments of ours that no process holds.
        has_memory_files: rollouts then lie outside that file system.
        start_problem: what went wrong when a worker was started; empty = nothing.
    """

    cores: int
    core_quota: float | None
    memory_bytes: int
    memory_left_bytes: int
    memory_limit_bytes: int | None
    shared_bytes: tuple[int, int] | None
    shared_leftovers: tuple[Path, ...]
    has_memory_files: bool
    open_files: int
    ray_processes: dict[int, str]
    ray_sessions: tuple[Path, ...]
    start_problem: str


def examine_machine(run_dir: Path) -> Iterator[Finding]:
    """Every finding about this machine, each as soon as it is known."""
    yield from judge(look_around())
    yield disk_finding(run_dir)
    yield from version_findings()
    yield torch_finding(torch_facts())
    yield from extra_findings()


def judge(machine: Machine) -> Iterator[Finding]:
    """What to think of the facts."""
    for about in (_cores, _memory, _shared_memory, _open_files, _workers):
        yield about(machine)
    yield from _ray(machine)


def look_around() -> Machine:
    """The facts of this machine."""
    total, left = system.memory_bytes()
    names = system.process_names()
    return Machine(
        cores=system.available_cores(),
        core_quota=system.core_quota(),
        memory_bytes=total,
        memory_left_bytes=left,
        memory_limit_bytes=system.memory_limit_bytes(),
        shared_bytes=_space(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
        shared_leftovers=tuple(unheld_segments(SHARED_MEMORY)),
        has_memory_files=hasattr(os, "memfd_create"),
        open_files=system.open_file_limit(),
        ray_processes={pid: name for pid, name in names.items() if name in RAY_PROCESSES},
        ray_sessions=tuple(sorted(RAY_SESSIONS.glob("session_[0-9]*"))),
        start_problem=try_worker(),
    )


def _space(directory: Path) -> tuple[int, int]:
    usage = shutil.disk_usage(directory)
    return usage.total, usage.free


def unheld_segments(directory: Path) -> Iterator[Path]:
    """Segments with the names that Python gives to shared memory which no process has mapped."""
    found = [path for path in directory.glob("psm_*") if path.stat().st_uid == os.getuid()]
    if not found:
        return
    maps = ""
    for file in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # somebody else's process, or it ended meanwhile
            maps += file.read_text()
    yield from (path for path in found if path.name not in maps)


def try_worker() -> str:
    """Start a process as workers are started and let it write into shared memory; empty, or what went wrong."""
    block = system.SharedBlock(1)
    try:
        process = multiprocessing.get_context("spawn").Process(target=_write, args=(block,), daemon=True)
        process.start()
        process.join(START_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            return f"a process that was started did nothing within {START_TIMEOUT_S:g} s"
        return "" if block.memory[0] == 1 else f"a process that was started ended with exit code {process.exitcode}"
    except (OSError, RuntimeError) as error:
        return f"no process can be started: {error}"
    finally:
        block.close()


def _write(block: system.SharedBlock) -> None:
    block.memory[0] = 1


def _cores(machine: Machine) -> Finding:
    cores, quota = machine.cores, machine.core_quota
    if quota is not None and quota < cores:
        return Finding(
            "warning",
            "cores",
            f"{cores} can be used, but the container is given the time of {quota:g} only, which auto does not know",
            f"train with --workers {max(1, int(quota) - 1)}",
        )
    others = (os.cpu_count() or cores) - cores
    return Finding("ok", "cores", f"{cores} can be used" + (f", {others} more are kept from us" if others else ""))


def _memory(machine: Machine) -> Finding:
    if not machine.memory_bytes:
        return Finding("note", "memory", "this system does not tell how much there is")
    total, left = machine.memory_bytes, machine.memory_left_bytes
    if machine.memory_limit_bytes is not None and machine.memory_limit_bytes < total:
        total, left = machine.memory_limit_bytes, min(left, machine.memory_limit_bytes)
    text = f"{size(left)} of {size(total)} left"
    if left < LITTLE_MEMORY_BYTES:
        return Finding("warning", "memory", text, "close other programs, or train with fewer --workers")
    return Finding("ok", "memory", text)


def _shared_memory(machine: Machine) -> Finding:
    if machine.shared_leftovers:
        names = " ".join(str(path) for path in machine.shared_leftovers)
        count = len(machine.shared_leftovers)
        return Finding("warning", "shared memory", f"{count} segments that no process holds take memory", f"rm {names}")
    if machine.has_memory_files:
        return Finding("ok", "shared memory", "memory files, which a small /dev/shm does not bound; none left over")
    if machine.shared_bytes is not None and machine.shared_bytes[1] < LITTLE_MEMORY_BYTES:
        total, left = machine.shared_bytes
        what = f"/dev/shm, where rollouts lie, has {size(left)} of {size(total)} left"
        remedy = "make it larger (docker run --shm-size 2g), or use --backend serial"
        return Finding("warning", "shared memory", what, remedy)
    return Finding("ok", "shared memory", "named segments, none left over")


def _open_files(machine: Machine) -> Finding:
    if 0 < machine.open_files < FEW_FILES:
        what = f"only {machine.open_files} may be open at once; a worker takes about 5"
        return Finding("warning", "open files", what, "ulimit -n 4096, in the shell that trains")
    return Finding(
        "ok", "open files", f"{machine.open_files:,} may be open at once" if machine.open_files else "no limit"
    )


def _workers(machine: Machine) -> Finding:
    if machine.start_problem:
        remedy = "train with --backend serial, or allow this user to start processes (ulimit -u, the sandbox's rules)"
        return Finding("error", "workers", machine.start_problem, remedy, exit_code=3)
    return Finding("ok", "workers", "processes start and see shared memory")


def _ray(machine: Machine) -> Iterator[Finding]:
    if machine.ray_processes:
        named = ", ".join(f"{name} {pid}" for pid, name in machine.ray_processes.items())
        yield Finding("note", "ray", f"runs here: {named}", "if nothing needs it: ray stop")
    elif machine.ray_sessions:
        what = f"{len(machine.ray_sessions)} sessions that nothing runs for left their files"
        yield Finding("note", "ray", what, f"rm -r {machine.ray_sessions[0].parent}")


def disk_finding(run_dir: Path) -> Finding:
    """Space, and speed of writing, where the run directory is or would be."""
    place = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.is_dir())
    _, left = _space(place)
    try:
        speed = _writing_bytes_per_s(place) if left > NO_DISK_BYTES else 0.0
    except OSError as error:
        return Finding("error", "disk", f"{place} cannot be written: {error.strerror}", "choose another --run-dir")
    return judge_disk(place, left, speed)


def judge_disk(place: Path, left_bytes: int, bytes_per_s: float) -> Finding:
    """What to think of the room and the speed of a directory."""
    text = f"{size(left_bytes)} left at {place}"
    if left_bytes <= NO_DISK_BYTES:
        return Finding("error", "disk", f"{text}: checkpoints will fail", "make room, or choose another --run-dir")
    text += f", written at {size(bytes_per_s)}/s"
    if left_bytes < LITTLE_DISK_BYTES:
        remedy = "make room, or keep fewer checkpoints: --checkpoint.keep_last 2"
        return Finding("warning", "disk", text, remedy)
    if bytes_per_s < SLOW_DISK_BYTES_PER_S:
        remedy = "a local --run-dir, or fewer checkpoints: --checkpoint.every_s 600"
        return Finding("warning", "disk", f"{text}, which is slow: training waits for checkpoints", remedy)
    return Finding("ok", "disk", text)


def _writing_bytes_per_s(place: Path) -> float:
    begin_s = time.perf_counter()
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(os.urandom(WRITTEN_BYTES))
        file.flush()
        os.fsync(file.fileno())
    return WRITTEN_BYTES / (time.perf_counter() - begin_s)


def torch_facts() -> dict[str, Any]:
    """Version, CUDA and devices [name, free bytes, bytes] as torch tells them; `problem` where it does not load.

    Asked in a process of its own: a broken driver takes it down.
    """
    command = [sys.executable, "-c", TORCH_SCRIPT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"problem": f"it did not load within {START_TIMEOUT_S:g} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"problem": f"it does not load: {lines[-1]}"}
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def torch_finding(facts: dict[str, Any]) -> Finding:
    """What to think of torch."""
    if "problem" in facts:
        return Finding("error", "torch", facts["problem"], "pip install --force-reinstall torch")
    version, cuda, devices = facts["version"], facts["cuda"], facts["devices"]
    if not cuda:
        return Finding("ok", "torch", f"{version}, for the CPU")
    if not devices:
        what = f"{version} is built for CUDA {cuda}, and there is no device that it can use: it trains on the CPU"
        remedy = "`nvidia-smi` tells whether there is one; without, torch for the CPU takes less of disk and memory"
        return Finding("note", "torch", what, remedy)
    described = ", ".join(f"{name} with {size(free)} of {size(total)} left" for name, free, total in devices)
    if max(free for _, free, _ in devices) < LITTLE_GPU_BYTES:
        remedy = "see with `nvidia-smi` who holds it, or train with --device cpu"
        return Finding("warning", "torch", f"{version}, CUDA {cuda}: {described}", remedy)
    return Finding("ok", "torch", f"{version}, CUDA {cuda}: {described}")


def size(num_bytes: float) -> str:
    """Bytes for people."""
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB else f"{num_bytes / MB:.0f} MB"
