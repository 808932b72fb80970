"""One episode as a moving picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from millrace.deploy.evaluate import maker_for
from millrace.deploy.policy import LoadedPolicy, load_policy
from millrace.envs.spaces import MASK_KEY
from millrace.errors import ConfigError, EnvError, MissingExtraError
from millrace.types import Array

MAX_FRAMES = 3000


def play(
    policy: LoadedPolicy | str | Path | None,
    out: str | Path,
    env: str | Callable[..., Any] | None = None,
    *,
    seed: int = 0,
    fps: int = 20,
    deterministic: bool = True,
    env_kwargs: dict[str, Any] | None = None,
) -> tuple[Path, float]:
    """Play one episode and write it as GIF or MP4; the path and the episode's return.

    Raises:
        ConfigError: another file type. EnvError: the environment gives no pictures.
    """
    target = Path(out)
    if target.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"cannot write {target.name}: the name must end in .gif or .mp4")
    loaded = policy if isinstance(policy, LoadedPolicy) else load_policy(policy)
    maker = maker_for(loaded, env).with_kwargs(**(env_kwargs or {}))
    frames, episode_return = _record(loaded, maker.make_single(render_mode="rgb_array"), seed, deterministic)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, frames, fps)
    return target, episode_return


def _record(policy: LoadedPolicy, env: Any, seed: int, deterministic: bool) -> tuple[list[Array], float]:
    frames: list[Array] = []
    episode_return, done = 0.0, False
    try:
        observation, info = env.reset(seed=seed)
        state = policy.new_state()
        while not done and len(frames) < MAX_FRAMES:
            frames.append(_frame(env))
            action = policy.act(observation, state, action_mask=info.get(MASK_KEY), deterministic=deterministic)
            observation, reward, terminated, truncated, info = env.step(action)
            episode_return += float(reward)
            done = terminated or truncated
        frames.append(_frame(env))
    finally:
        env.close()
    return frames, episode_return


def _frame(env: Any) -> Array:
    try:
        frame = env.render()
    except Exception as error:
        if "pygame" in str(error):
            raise MissingExtraError("pygame", "render", "drawing this environment") from None
        raise
    if frame is None:
        raise EnvError("the environment gives no picture; it needs render_mode='rgb_array'")
    return np.asarray(frame, np.uint8)


def _write(target: Path, frames: list[Array], fps: int) -> None:
    if target.suffix == ".mp4":
        try:
            import imageio.v3 as imageio
        except ModuleNotFoundError:
            raise MissingExtraError("imageio", "video", "writing MP4") from None
        imageio.imwrite(target, np.stack(frames), fps=fps)
        return
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise MissingExtraError("pillow", "render", "writing GIF") from None
    images = [Image.fromarray(frame).quantize(64) for frame in frames]
    images[0].save(target, save_all=True, append_images=images[1:], duration=max(20, 1000 // fps), loop=0)
