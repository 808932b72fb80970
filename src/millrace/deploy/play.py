"""One episode as a moving picture or a sheet of pictures, with what the policy thought beside the game."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from millrace.deploy.evaluate import maker_for
from millrace.deploy.insight import decide
from millrace.deploy.panel import Panel, Shot, contact_sheet
from millrace.deploy.policy import LoadedPolicy, load_policy
from millrace.envs.spaces import MASK_KEY
from millrace.errors import ConfigError, EnvError, MillraceError, MissingExtraError
from millrace.types import Array

MAX_STEPS = 10_000
MAX_FRAMES = 600
"""Of a longer episode only every second step is shown, or every fourth, and so on: it plays faster, in less memory."""
SHEET_FRAMES = 9
GIF_COLOURS = 160
LAST_FRAME_MS = 1500
VIDEO_BLOCK = 16
"""Sides of a video are multiples of this many pixels."""


def play(
    policy: LoadedPolicy | str | Path | None,
    out: str | Path,
    env: str | Callable[..., Any] | None = None,
    *,
    seed: int = 0,
    fps: int = 20,
    deterministic: bool = True,
    env_kwargs: dict[str, Any] | None = None,
    plain: bool = False,
    frames: int = SHEET_FRAMES,
) -> tuple[Path, float]:
    """Play one episode and write it as GIF, MP4 or, as one sheet of pictures, PNG; the path and the episode's return.

    Args:
        plain: the game alone, without return, value and action probabilities beside it.
        frames: how many pictures a PNG holds, evenly spaced.

    Raises:
        MillraceError: the disk is full. ConfigError: another file type. EnvError: the environment gives no pictures.
    """
    target = Path(out)
    if target.suffix not in (".gif", ".mp4", ".png"):
        raise ConfigError(f"cannot write {target.name}: the name must end in .gif, .mp4 or .png")
    if frames < 1:
        raise ConfigError(f"frames={frames} must be 1 or more")
    loaded = policy if isinstance(policy, LoadedPolicy) else load_policy(policy)
    maker = maker_for(loaded, env).with_kwargs(**(env_kwargs or {}))
    game = _record(loaded, maker.make_single(render_mode="rgb_array"), seed, deterministic)
    shots = game.shots if target.suffix != ".png" else _evenly(game.shots, frames)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, _plain(shots) if plain else _with_panel(loaded, game, shots), fps)
    except OSError as error:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)  # half a film
        raise MillraceError(f"cannot write {target}: {error.strerror or error}; choose another --out") from None
    return target, game.shots[-1].return_so_far


@dataclass(frozen=True)
class _Game:
    """What was seen of an episode.

    Attributes:
        values: of every step.
        names: of the actions; empty where the environment has none.
    """

    shots: list[Shot]
    values: list[float]
    names: list[str]


def _record(policy: LoadedPolicy, env: Any, seed: int, deterministic: bool) -> _Game:
    film, values = Film(MAX_FRAMES), []
    episode_return, done, step = 0.0, False, 0
    try:
        observation, info = env.reset(seed=seed)
        state = policy.new_state()
        while not done and step < MAX_STEPS:
            mask = info.get(MASK_KEY)
            action, insight = decide(policy, observation, state, action_mask=mask, deterministic=deterministic)
            values.append(insight.value)
            film.offer(lambda: Shot(_frame(env), step, episode_return, insight))  # noqa: B023 - drawn at once
            observation, reward, terminated, truncated, info = env.step(action)
            episode_return += float(reward)
            step += 1
            done = terminated or truncated
        film.frames.append(Shot(_frame(env), step, episode_return, None))
        return _Game(film.frames, values, _action_names(env, policy))
    finally:
        env.close()


def _action_names(env: Any, policy: LoadedPolicy) -> list[str]:
    """As Atari environments tell them, and others may."""
    tell = getattr(env.unwrapped, "get_action_meanings", None)
    names = list(map(str, tell())) if tell is not None else []
    return names if policy.spec.action.nvec == (len(names),) else []


def _evenly(shots: list[Shot], count: int) -> list[Shot]:
    """The first, the last, and as many between."""
    places = np.linspace(0, len(shots) - 1, min(count, len(shots))).round().astype(int)
    return [shots[place] for place in places]


def _plain(shots: Sequence[Shot]) -> Iterator[Array]:
    return (shot.frame for shot in shots)


def _with_panel(policy: LoadedPolicy, game: _Game, shots: Sequence[Shot]) -> Iterator[Array]:
    """Each drawn when it is written: all of them at once would need much memory."""
    panel = Panel(game.shots, policy.spec.action, game.values, game.names)
    return (np.asarray(panel.draw(shot)) for shot in shots)


class Film:
    """Frames of an episode whose length is not known: every k-th, where k doubles each time there are too many."""

    def __init__(self, max_frames: int) -> None:
        self.frames: list[Any] = []
        self._max_frames = max_frames
        self._every, self._offered = 1, 0

    def offer(self, draw: Callable[[], Any]) -> None:
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


def _write(target: Path, pictures: Iterator[Array], fps: int) -> None:
    if target.suffix == ".mp4":
        _write_video(target, pictures, fps)
        return
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise MissingExtraError("pillow", "render", f"writing {target.suffix[1:].upper()}") from None
    if target.suffix == ".png":
        contact_sheet([Image.fromarray(picture) for picture in pictures]).save(target)
        return
    images = [Image.fromarray(picture).quantize(GIF_COLOURS) for picture in pictures]
    durations = [max(20, 1000 // fps)] * (len(images) - 1) + [LAST_FRAME_MS]
    images[0].save(target, save_all=True, append_images=images[1:], duration=durations, loop=0)


def _write_video(target: Path, pictures: Iterator[Array], fps: int) -> None:
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingExtraError("imageio[ffmpeg]", "video", "writing MP4")
    import imageio.v2 as imageio

    writer: Any = imageio.get_writer(target, fps=fps)
    with writer:
        for picture in pictures:
            short = [-side % VIDEO_BLOCK for side in picture.shape[:2]]
            writer.append_data(np.pad(picture, ((0, short[0]), (0, short[1]), (0, 0)), constant_values=255))
