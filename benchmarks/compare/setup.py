"""Makes one virtual environment per peer from its requirement file.

A peer that pip alone cannot build has a script beside that file, which its interpreter runs first.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.harness import ROOT, say

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements"
VENVS = ROOT / "benchmarks" / ".venvs"
OURS = "millrace"


def peers() -> tuple[str, ...]:
    """Every peer that has a script, ours last."""
    names = sorted(path.stem.replace("_", "-") for path in (HERE / "peers").glob("[a-z]*.py"))
    return tuple(sorted(names, key=lambda name: name == OURS))


def environments() -> tuple[str, ...]:
    """Every peer, and those that other benchmarks than the comparison run."""
    return tuple(sorted({*peers(), *(path.stem for path in REQUIREMENTS.glob("*.txt"))}, key=lambda name: name == OURS))


def module_of(peer: str) -> str:
    """The peer's script, as `python -m` takes it."""
    return f"benchmarks.compare.peers.{peer.replace('-', '_')}"


def python_of(peer: str, ours: str) -> str:
    """The interpreter that runs a peer: its own environment's, or `ours` for a peer without requirements."""
    if not requirements_of(peer).exists():
        return ours
    python = _venv_python(peer)
    if not python.exists():
        raise SystemExit(f"there is no environment for {peer}: run `python -m benchmarks.compare setup --peers {peer}`")
    return str(python)


def requirements_of(peer: str) -> Path:
    """The peer's requirement file, which need not exist."""
    return REQUIREMENTS / f"{peer}.txt"


def set_up(peer: str, again: bool = False) -> None:
    """Make the environment of a peer, unless it is there and made from the same requirements."""
    requirements, done = requirements_of(peer), VENVS / peer / "requirements.txt"
    if not requirements.exists():
        say(f"{peer}: runs in the interpreter of --millrace-python")
        return
    if not again and done.exists() and done.read_bytes() == requirements.read_bytes():
        say(f"{peer}: is there")
        return
    say(f"{peer}: making {done.parent.relative_to(ROOT)}")
    venv.create(done.parent, clear=True, with_pip=True)
    # torch alone and first: a CPU build that is at hand satisfies every later requirement of a bare torch.
    _pip(peer, *(line for line in requirements.read_text("utf-8").splitlines() if line.startswith("torch==")))
    build = requirements.with_suffix(".py")
    if build.exists():
        subprocess.run([str(_venv_python(peer)), str(build)], check=True)
    _pip(peer, "-r", str(requirements))
    done.write_bytes(requirements.read_bytes())


def _pip(peer: str, *arguments: str) -> None:
    if arguments:
        command = [str(_venv_python(peer)), "-m", "pip", "install", "--quiet", *arguments]
        subprocess.run(command, check=True)


def _venv_python(peer: str) -> Path:
    folder, name = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    return VENVS / peer / folder / name
