"""Import time, and process start to first action from a checkpoint: millrace and Stable-Baselines3 in turn.

`python -m benchmarks.startup`; millrace runs in this interpreter, the peer in its own environment
(`python -m benchmarks.compare setup --peers sb3`). The measured programs are what a person would write, and
import nothing of these benchmarks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.child import LAUNCHED_AT
from benchmarks.compare.setup import python_of

SINCE_LAUNCH = f"time.monotonic() - float(os.environ['{LAUNCHED_AT}'])"
IMPORT = """
import time
start = time.perf_counter()
import millrace
print('{"import_s": %.4f}' % (time.perf_counter() - start))
"""
ACT = {
    "millrace": f"""
import os, sys, time
import numpy as np
import millrace
millrace.load_policy(sys.argv[1]).act(np.zeros(4, np.float32))
print('{{"first_action_s": %.4f}}' % ({SINCE_LAUNCH}))
""",
    "sb3": f"""
import os, sys, time
import numpy as np
from stable_baselines3 import PPO
PPO.load(sys.argv[1], device="cpu").predict(np.zeros(4, np.float32))
print('{{"first_action_s": %.4f}}' % ({SINCE_LAUNCH}))
""",
}
TRAIN = {
    "millrace": """
import sys
import millrace
if __name__ == "__main__":
    millrace.train("CartPole-v1", settings={"total_env_steps": 20_000, "run_dir": sys.argv[1]}, quiet=True)
""",
    "sb3": """
import sys
from stable_baselines3 import PPO
model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
model.learn(2048)
model.save(sys.argv[1])
""",
}
COLUMNS = (
    harness.Column("import_s", "import, s", 3),
    harness.Column("first_action_s", "process start to first action, s", 2, better="lower"),
)
TIMEOUT_S = 60.0
TRAIN_TIMEOUT_S = 180.0


def main() -> None:
    """Train a checkpoint on each side, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sides", default="millrace,sb3", help="of millrace,sb3")
    arguments = parser.parse_args()
    pythons = {side: python_of(side, sys.executable) for side in arguments.sides.split(",")}
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        candidates = [_acting(side, python, Path(folder, side)) for side, python in pythons.items()]
        if "millrace" in pythons:
            candidates.insert(0, harness.Candidate("millrace, import alone", (sys.executable, "-c", IMPORT)))
        harness.measure("startup", candidates, COLUMNS, arguments.repeats, TIMEOUT_S, warmups=1)


def _acting(side: str, python: str, checkpoint: Path) -> harness.Candidate:
    """A candidate that acts from a checkpoint, which is trained here."""
    # A file, as worker processes cannot import a program given by -c; its name must hide no package.
    script = checkpoint.with_name(f"train_{side}.py")
    script.write_text(TRAIN[side], encoding="utf-8")
    subprocess.run(
        [python, str(script), str(checkpoint)],
        check=True,
        timeout=TRAIN_TIMEOUT_S,
        stdout=subprocess.DEVNULL,
    )
    return harness.Candidate(side, (python, "-c", ACT[side], str(checkpoint)))


if __name__ == "__main__":
    main()
