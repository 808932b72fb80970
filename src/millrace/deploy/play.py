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

MAX_STEPS = 10_000
MAX_FRAMES = 600
"""Of a longer episode only every second step is shown, or every fourth, and so on: it plays faster, in less memory."""


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
    film = Film(MAX_FRAMES)
    episode_return, done, steps = 0.0, False, 0
    try:
        observation, info = env.reset(seed=seed)
        state = policy.new_state()
        while not done and steps < MAX_STEPS:
            film.offer(lambda: _frame(env))
            action = policy.act(observation, state, action_mask=info.get(MASK_KEY), deterministic=deterministic)
            observation, reward, terminated, truncated, info = env.step(action)
            episode_return += float(reward)
            steps += 1
            done = terminated or truncated
        film.frames.append(_frame(env))
    finally:
        env.close()
    return film.frames, episode_return


class Film:
    """Frames of an episode whose length is not known: every k-th, where k doubles each time there are too many."""

    def __init__(self, max_frames: int) -> None:
        self.frames: list[Array] = []
        self._max_frames = max_frames
        self._every, self._offered = 1, 0

    def offer(self, draw: Callable[[], Array]) -> None:
        """The next frame; drawn only if it is kept."""
        if self._offered % self._every == 0:
            if len(self.frames) == self._max_frames:
                del self.frames[1::2]
                self._every *= 2
            if self._offered % self._every == 0:
                self.frames.append(draw())
        self._offered += 1


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
