"""Builds PufferLib 3.0.0 against the torch that is here, without its own games.

It comes as source only. Its games are left out (`NO_OCEAN`), because their build downloads libraries; but then its
setup script reads a name that only they would have set, so that name is given here. Where it finds `nvcc` it builds
for GPUs, which fails without the rest of CUDA: so `nvcc` is hidden.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "install", "--quiet")


def main() -> None:
    """Install the tools of the build, then PufferLib with all that it requires."""
    subprocess.run([*PIP, "setuptools==84.2.1", "wheel==0.48.0", "ninja==1.13.2", "numpy==1.26.4"], check=True)
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "nvcc").exists()]
    with tempfile.TemporaryDirectory() as shim:
        Path(shim, "sitecustomize.py").write_text("import builtins\n\nbuiltins.c_extension_paths = []\n")
        environment = {**os.environ, "PATH": os.pathsep.join(path), "PYTHONPATH": shim, "NO_OCEAN": "1"}
        subprocess.run([*PIP, "--no-build-isolation", "pufferlib==3.0.0"], env=environment, check=True)


if __name__ == "__main__":
    main()
