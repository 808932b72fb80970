"""Everything that depends on the operating system, with its fallbacks: memory, locks, cores, disks."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import reduction, shared_memory
from pathlib import Path
from typing import Any, BinaryIO

from millrace.errors import RunLockedError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
CGROUPS = Path("/sys/fs/cgroup")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class SharedBlock:
    """Memory that this process and the workers it spawns see alike, zeroed at first.

    On Linux an anonymous memory file passed by descriptor: not bounded by a small /dev/shm, and gone with its
    last holder however that one dies. Elsewhere `multiprocessing.shared_memory`.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = max(nbytes, 1)
        self._segment: shared_memory.SharedMemory | None = None
        self.memory: Any
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("millrace", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, self.nbytes)
            self.memory = memoryview(mmap.mmap(self._fd, self.nbytes))
        else:
            self._segment = shared_memory.SharedMemory(create=True, size=self.nbytes)
            self.memory = self._segment.buf

    def __reduce__(self) -> tuple[Any, ...]:
        """Picklable only while a worker is being spawned, which is when descriptors can travel."""
        if self._segment is not None:
            return _attach_segment, (self._segment.name, self.nbytes)
        return _attach_fd, (reduction.DupFd(self._fd), self.nbytes)

    def close(self) -> None:
        """Let go. Arrays that still look into the block keep its memory until they are gone."""
        if self._segment is not None:
            with contextlib.suppress(BufferError):
                self._segment.close()
            self._segment.unlink()
        elif self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _attach_fd(duplicate: Any, nbytes: int) -> SharedBlock:
    block = SharedBlock.__new__(SharedBlock)
    block.nbytes, block._segment = nbytes, None
    block._fd = duplicate.detach()
    block.memory = memoryview(mmap.mmap(block._fd, nbytes))
    return block


def _attach_segment(name: str, nbytes: int) -> SharedBlock:
    block = SharedBlock.__new__(SharedBlock)
    block.nbytes, block._fd = nbytes, -1
    block._segment = shared_memory.SharedMemory(name=name)
    block.memory = block._segment.buf
    return block


class FileLock:
    """An exclusive lock that the operating system releases when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RunLockedError: somebody else holds it; their process id is named.
        """
        file = open(self._path, "a+b")  # noqa: SIM115 - held until release
        try:
            _lock(file)
        except OSError:
            file.seek(0)
            holder = file.read(32).decode(errors="replace").strip() or "unknown"
            file.close()
            raise RunLockedError(
                f"{self._path.parent} is being trained by process {holder}; "
                "wait for it, stop it, or use another --run-dir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def is_held(self) -> bool:
        """Whether somebody holds it now."""
        if not self._path.exists():
            return False
        with open(self._path, "rb") as file:
            try:
                _lock(file)
            except OSError:
                return True
        return False


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 20)  # past the text, so that others can read who holds it
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def out_of_ctrl_c() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a process that the terminal's Ctrl-C does not reach."""
    if sys.platform == "win32":
        import subprocess

        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def lower_priority(nice: int) -> None:
    """Give way to other programs, where the system knows niceness."""
    if nice and hasattr(os, "nice"):
        os.nice(nice)


def yield_while_waiting() -> None:
    """Let threads that wait for each other inside an operation sleep, instead of spinning on a core a worker wants.

    Works for the OpenMP of GCC, which torch's Linux wheels bring, and only before torch is loaded. With one worker
    beside two learner threads on two cores, Pong went from 718 to 898 steps a second; alone, the learner lost 3 %.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def keep_freed_memory() -> None:
    """Keep blocks of up to 32 MB when they are freed: an image learner wants the same ones again in every minibatch.

    For glibc; elsewhere nothing happens. Giving them back and getting them anew cost 4 ms of 95 a minibatch of Pong.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 2**30)


def kill(pid: int) -> None:
    """End a process at once; one that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sync_directory(path: Path) -> None:
    """Make a rename in this directory survive a power cut, where the system can."""
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def memory_pss_bytes(pid: int) -> int:
    """Proportional set size of a process: its own memory plus its share of what it shares; 0 where unknown."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def memory_rss_bytes(pid: int) -> int:
    """Resident set size of a process, which is cheap to read; 0 where unknown."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * mmap.PAGESIZE


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for the processes started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def process_tree(pid: int) -> list[int]:
    """A process and its descendants, where the system tells (Linux); else the process alone."""
    found, new = [pid], [pid]
    while new:
        children: list[int] = []
        for parent in new:
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                with contextlib.suppress(OSError):  # it ended meanwhile
                    children += map(int, task.read_text().split())
        found += children
        new = children
    return found


def cpu_time_s(pid: int) -> float:
    """Processor time that a process has used; 0 where unknown."""
    try:
        # Fields are counted from behind the name, which may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, AttributeError):
        return 0.0


def core_quota(cgroups: Path = CGROUPS) -> float | None:
    """Cores whose time a container may use, which `available_cores` does not know; None without a limit."""
    quotas = []
    for text in _cgroup_texts(cgroups, "cpu.max"):  # "200000 100000", or "max 100000"
        quota, period = text.split()
        quotas += [] if quota == "max" else [int(quota) / int(period)]
    pairs = _cgroup_texts(cgroups, "cpu.cfs_quota_us"), _cgroup_texts(cgroups, "cpu.cfs_period_us")
    quotas += [int(quota) / int(period) for quota, period in zip(*pairs, strict=False) if int(quota) > 0]
    return min(quotas, default=None)


def memory_limit_bytes(cgroups: Path = CGROUPS) -> int | None:
    """What a container may use; None without a limit."""
    texts = [*_cgroup_texts(cgroups, "memory.max"), *_cgroup_texts(cgroups, "memory.limit_in_bytes")]
    limits = [int(text) for text in texts if text.strip() != "max"]
    return min((limit for limit in limits if limit < 2**60), default=None)  # version 1 writes "none" as 2^63


def _cgroup_texts(cgroups: Path, file: str) -> list[str]:
    """A control file of this process's groups, and of those around them, in both versions of cgroups."""
    places = {cgroups}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            home = cgroups / controllers
            inner = home / group.lstrip("/")
            places |= {home, inner, *(place for place in inner.parents if place.is_relative_to(home))}
    texts = []
    for place in sorted(places):
        with contextlib.suppress(OSError):
            texts.append((place / file).read_text())
    return texts


def memory_bytes() -> tuple[int, int]:
    """Memory of this machine, and how much of it is left; 0 where unknown."""
    found = {"MemTotal": 0, "MemAvailable": 0}
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * 1024
    return found["MemTotal"], found["MemAvailable"]


def cpu_idle_s() -> float:
    """Seconds that the cores of this machine have been idle since it started, all together; nan where unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return (float(fields[4]) + float(fields[5])) / os.sysconf("SC_CLK_TCK")  # idle, and waiting for a disk
    return float("nan")


def process_names() -> dict[int, str]:
    """Every process that can be seen, by id, where the system tells (Linux)."""
    names = {}
    for file in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            names[int(file.parent.name)] = file.read_text().strip()
    return names


def open_file_limit() -> int:
    """Files and pipes that this process may hold open; 0 where unknown."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def no_core_dump() -> None:
    """Leave no file of this process's memory behind where it dies."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def ask_for_stack(pid: int) -> None:
    """Have a process that runs under `python -X faulthandler` print where it is, and end."""
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
