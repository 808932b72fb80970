"""Recording a game, and what is drawn beside it."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import millrace
from helpers import quick_train
from millrace.deploy.insight import insight
from millrace.deploy.panel import CHOSEN, WIDTH, Panel, Shot
from millrace.deploy.play import Film
from millrace.errors import ConfigError, MillraceError
from millrace.types import ActionSpec
from toys import Everything, Masked, Recall


@pytest.mark.parametrize(("offered", "every"), [(0, 1), (5, 1), (8, 1), (9, 2), (16, 2), (17, 4), (33, 8), (1000, 128)])
def test_of_a_long_episode_every_kth_frame_is_kept_and_only_those_are_drawn(offered: int, every: int) -> None:
    film, drawn = Film(max_frames=8), []
    for number in range(offered):
        film.offer(lambda number=number: drawn.append(number) or np.full((1, 1, 3), number % 256, np.uint8))
    kept = [int(frame[0, 0, 0]) for frame in film.frames]
    assert kept == [number % 256 for number in range(0, offered, every)]
    assert len(kept) <= 8
    assert len(drawn) <= 8 + 4 * max(0, int(np.log2(max(1, offered) / 8)) + 1)


class Drawn(gym.Wrapper):
    """Any environment, with a grey picture."""

    render_mode = "rgb_array"

    def render(self):
        return np.full((96, 120, 3), 200, np.uint8)


DRAWN = {
    "masked": (lambda render_mode=None: Drawn(Masked()), {}),
    "mask in info": (lambda render_mode=None: Drawn(Masked("info")), {}),
    "everything": (lambda render_mode=None: Drawn(Everything()), {}),
    "recurrent": (lambda render_mode=None: Drawn(Recall(3)), {"net.memory": "gru", "net.memory_size": 8}),
    "stacked": (lambda render_mode=None: Drawn(Recall(3)), {"env.frame_stack": 2}),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_every_kind_of_action_and_policy_has_its_panel(kind: str, run_dir: Path, tmp_path: Path) -> None:
    env, settings = DRAWN[kind]
    quick_train(env, run_dir, {"stop.updates": 1, **settings}, backend="serial")
    path, episode_return = millrace.play(run_dir, tmp_path / "game.gif", env, seed=3)
    assert episode_return == millrace.evaluate(run_dir, env, episodes=1, seed=3).mean_return
    with Image.open(path) as game:
        assert game.size == (3 * 120 + WIDTH, 3 * 96)  # a small picture grows until the panel fits
        assert game.n_frames > 1
    with Image.open(millrace.play(run_dir, tmp_path / "plain.gif", env, seed=3, plain=True)[0]) as plain:
        assert plain.size == (120, 96)
        assert plain.n_frames in (1, game.n_frames)  # Pillow merges frames that are alike


def test_a_sheet_holds_as_many_pictures_as_asked_for_the_first_and_the_last_among_them(run_dir, tmp_path) -> None:
    quick_train("millrace/RealmMini-v0", run_dir, {"stop.updates": 1, "env.kwargs": {"max_step": 20}}, backend="serial")
    sizes = {}
    for frames in (1, 4):
        with Image.open(millrace.play(run_dir, tmp_path / "sheet.png", frames=frames)[0]) as sheet:
            sizes[frames] = sheet.size
    one = sizes[1][0] - 28, sizes[1][1] - 28  # a margin all around
    assert sizes[4] == (2 * one[0] + 42, 2 * one[1] + 42)
    with pytest.raises(ConfigError, match="frames=0 must be 1 or more"):
        millrace.play(run_dir, tmp_path / "sheet.png", frames=0)


def panel_of(spec: ActionSpec, params, action, mask=None, names=()) -> np.ndarray:
    found = insight(spec, np.array(params, np.float32), 1.0, np.array(action), mask)
    shots = [Shot(np.zeros((300, 10, 3), np.uint8), 0, 0.0, found)]
    return np.asarray(Panel(shots, spec, [1.0], names).draw(shots[0]))[:, 10:]


def chosen_pixels(picture: np.ndarray) -> int:
    return int((np.abs(picture[140:].astype(int) - CHOSEN).sum(-1) < 30).sum())


def test_the_bar_of_the_chosen_action_is_as_long_as_it_is_probable() -> None:
    spec = ActionSpec((4,))
    likely, half = (
        chosen_pixels(panel_of(spec, [0, 9, 0, 0], [1])),
        chosen_pixels(panel_of(spec, [0, 1.0986, 0, 0], [1])),
    )
    assert half == pytest.approx(likely / 2, rel=0.1)
    assert chosen_pixels(panel_of(spec, [0, 9, 0, 0], [2])) < 0.1 * likely


def test_masked_actions_look_unlike_improbable_ones() -> None:
    spec = ActionSpec((3,))
    mask = np.array([True, True, False])
    assert (panel_of(spec, [9, 0, -99], [0], mask) != panel_of(spec, [9, 0, -99], [0])).any()


def test_of_very_many_actions_those_that_were_chosen_are_shown() -> None:
    spec = ActionSpec((500,))
    params = np.zeros(500)
    params[:400] = 1.0
    assert chosen_pixels(panel_of(spec, params + 5 * (np.arange(500) == 450), [450])) > 0
    assert panel_of(spec, params, [3]).shape == (300, WIDTH, 3)
    assert panel_of(ActionSpec((), (-1.0,) * 60, (1.0,) * 60), np.zeros(120), np.zeros(60)).shape == (300, WIDTH, 3)


def test_actions_have_the_names_that_the_game_gives_them() -> None:
    named = panel_of(ActionSpec((2,)), [0, 0], [0], names=["left", "right"])
    assert (named != panel_of(ActionSpec((2,)), [0, 0], [0])).any()
    millrace.register_envs()
    names = gym.make("millrace/RealmMini-v0").unwrapped.get_action_meanings()
    assert len(names) == len(set(names)) == 16
    assert [names[0], names[2], names[12]] == ["walk E", "walk N", "flash W"]


def test_a_full_disk_is_told_in_a_sentence_and_leaves_no_half_film(run_dir: Path, tmp_path: Path, monkeypatch) -> None:
    quick_train(lambda: Drawn(Recall(3)), run_dir, {"stop.updates": 1}, backend="serial")

    def full(self, target, *arguments, **options):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(MillraceError, match=r"cannot write .*game\.gif: No space left on device; choose another --out"):
        millrace.play(run_dir, tmp_path / "game.gif", lambda render_mode=None: Drawn(Recall(3)))
    assert not list(tmp_path.glob("game*"))
