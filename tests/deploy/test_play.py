"""Recording a game."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.deploy.play import Film


@pytest.mark.parametrize(("offered", "every"), [(0, 1), (5, 1), (8, 1), (9, 2), (16, 2), (17, 4), (33, 8), (1000, 128)])
def test_of_a_long_episode_every_kth_frame_is_kept_and_only_those_are_drawn(offered: int, every: int) -> None:
    film, drawn = Film(max_frames=8), []
    for number in range(offered):
        film.offer(lambda number=number: drawn.append(number) or np.full((1, 1, 3), number % 256, np.uint8))
    kept = [int(frame[0, 0, 0]) for frame in film.frames]
    assert kept == [number % 256 for number in range(0, offered, every)]
    assert len(kept) <= 8
    assert len(drawn) <= 8 + 4 * max(0, int(np.log2(max(1, offered) / 8)) + 1)
