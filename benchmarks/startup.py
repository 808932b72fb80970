"""Process start to first action, and the time of an action, from a trained policy; import time.

`python -m benchmarks.startup [--sides millrace,sb3,rllib]`; millrace runs in this interpreter, each peer in its own
environment (`python -m benchmarks.compare setup --peers sb3,rllib`). All take turns. The measured programs are what a
person would write, and import nothing of these benchmarks; beside them stands what their libraries take to import.
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
ALONE = """
import os, time
import {library}
print('{{"first_action_s": %.4f}}' % (SINCE_LAUNCH))
""".replace("SINCE_LAUNCH", SINCE_LAUNCH)
ACT = f"""
import os, sys, time
import numpy as np
LOAD
act(obs)
first = {SINCE_LAUNCH}
times = []
for _ in range(3000):
    begin = time.perf_counter()
    act(obs)
    times.append((time.perf_counter() - begin) * 1e6)
times.sort()
print('{{"first_action_s": %.4f, "act_us": %.2f, "act_p99_us": %.2f}}' % (first, times[1500], times[2970]))
"""
LOADS = {
    "millrace": """
import millrace
obs = np.zeros(4, np.float32)
act = millrace.load_policy(sys.argv[1]).act
""",
    "millrace images": """
import millrace
obs = {"map": np.zeros((4, 51, 51), np.uint8), "vector": np.zeros(31, np.float32), "action_mask": np.ones(16, bool)}
act = millrace.load_policy(sys.argv[1]).act
""",
    "sb3": """
from stable_baselines3 import PPO
obs = np.zeros(4, np.float32)
act = PPO.load(sys.argv[1], device="cpu").predict
""",
    "rllib": """
import torch
from ray.rllib.core.rl_module.rl_module import RLModule
obs = np.zeros((1, 4), np.float32)
module = RLModule.from_checkpoint(sys.argv[1])
def act(obs):
    with torch.no_grad():
        return module.forward_inference({"obs": torch.from_numpy(obs)})["action_dist_inputs"].argmax(-1).numpy()
""",
}
TRAIN = {
    "millrace": """
import sys
import millrace
if __name__ == "__main__":
    where = sys.argv[1]
    millrace.train("CartPole-v1", settings={"total_env_steps": 20_000, "run_dir": where}, quiet=True)
    quick = {"total_env_steps": 256, "collect.rollout_steps": 16, "collect.backend": "serial"}
    millrace.train("millrace/Realm-v0", workers=1, envs_per_worker=4,
                   settings={**quick, "run_dir": where + "-images"}, quiet=True)
    for suffix in ("millrace", "onnx"):
        for name in (where, where + "-images"):
            millrace.export_policy(name, f"{name}.{suffix}")
""",
    "sb3": """
import sys
from stable_baselines3 import PPO
model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
model.learn(2048)
model.save(sys.argv[1])
""",
    "rllib": """
import sys
import gymnasium as gym
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
env = gym.make("CartPole-v1")
RLModuleSpec(
    module_class=DefaultPPOTorchRLModule,
    observation_space=env.observation_space,
    action_space=env.action_space,
    model_config=DefaultModelConfig(fcnet_hiddens=[64, 64]),
).build().save_to_path(sys.argv[1])
""",
}
COLUMNS = (
    harness.Column("import_s", "import, s", 3),
    harness.Column("first_action_s", "process start to first action, s", 2, better="lower"),
    harness.Column("act_us", "an action, us", 1, better="lower"),
    harness.Column("act_p99_us", "99th percentile", 1),
)
TIMEOUT_S = 60.0
TRAIN_TIMEOUT_S = 300.0


def main() -> None:
    """Train a policy on each side, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sides", default="millrace,sb3,rllib", help="of millrace,sb3,rllib")
    arguments = parser.parse_args()
    sides = arguments.sides.split(",")
    pythons = {side: python_of(side, sys.executable) for side in sides}
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        candidates = []
        for side, python in pythons.items():
            _train(side, python, Path(folder, side))
            candidates += _ours(Path(folder, side)) if side == "millrace" else []
            candidates += [] if side == "millrace" else [_acting(side, python, side, Path(folder, side))]
        harness.measure("startup", candidates, COLUMNS, arguments.repeats, TIMEOUT_S, warmups=1)


def _train(side: str, python: str, target: Path) -> None:
    # A file, as worker processes cannot import a program given by -c; its name must hide no package.
    script = target.with_name(f"train_{side}.py")
    script.write_text(TRAIN[side], encoding="utf-8")
    command = [python, str(script), str(target)]
    subprocess.run(command, check=True, timeout=TRAIN_TIMEOUT_S, stdout=subprocess.DEVNULL)


def _ours(run: Path) -> list[harness.Candidate]:
    """Every form of our policies, and what their libraries take to import."""
    images = run.with_name(f"{run.name}-images")
    alone = [
        harness.Candidate(f"millrace's {library}, import alone", (sys.executable, "-c", ALONE.format(library=library)))
        for library in ("torch", "onnxruntime")
    ]
    forms = (("", ""), (".millrace", " archive"), (".onnx", " ONNX"))
    return [
        harness.Candidate("millrace, import alone", (sys.executable, "-c", IMPORT)),
        *alone,
        *(_acting(f"millrace{name}", sys.executable, "millrace", Path(f"{run}{end}")) for end, name in forms),
        *(
            _acting(f"millrace images{name}", sys.executable, "millrace images", Path(f"{images}{end}"))
            for end, name in forms
        ),
    ]


def _acting(name: str, python: str, load: str, policy: Path) -> harness.Candidate:
    return harness.Candidate(name, (python, "-c", ACT.replace("LOAD", LOADS[load]), str(policy)))


if __name__ == "__main__":
    main()
