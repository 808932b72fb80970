"""A figure that leaves its healthy range for long is told of once, with its cause and what to try."""

from __future__ import annotations

from millrace.watch import ROWS, Watch


def sentences(watch: Watch, name: str, values, progress: float = 0.5) -> list[str]:
    return [sentence for value in values for sentence in watch.see({name: value}, progress)]


def test_a_collapsed_value_is_told_of_once_with_what_to_try() -> None:
    watch = Watch()
    found = sentences(watch, "explained_variance", [-0.8] * 3 * ROWS)
    assert len(found) == 1
    assert found[0].startswith("watch: explained_variance = -0.8 is below 0 (")
    assert "the value has collapsed or never learned" in found[0]
    assert "--ppo.normalize_reward true" in found[0]


def test_a_single_bad_row_and_the_beginning_of_a_run_are_no_news() -> None:
    watch = Watch()
    assert sentences(watch, "kl", [0.01] * ROWS + [9.0, 9.0] + [0.01] * ROWS) == []
    assert sentences(watch, "explained_variance", [-0.8] * 3 * ROWS, progress=0.01) == []
    assert sentences(watch, "explained_variance", [float("nan")] * 3 * ROWS) == []


def test_a_game_that_is_mastered_leaves_the_value_nothing_to_explain() -> None:
    row = {"explained_variance": -3.0, "value_scale": 0.01, "target_mean": 90.0, "target_deviation": 1.0}
    watch = Watch()
    assert [watch.see(row, 0.5) for _ in range(2 * ROWS)] == [[]] * 2 * ROWS


def test_it_is_told_again_when_it_was_well_in_between() -> None:
    values = [0.9] * ROWS + [0.1] * ROWS + [0.9] * ROWS + [0.1] * ROWS
    found = sentences(Watch(), "effective_sample_share", values)
    assert len(found) == 2
    assert "the acting policy is another one: lower --max-policy-lag or --replay.samples_per_insert" in found[0]


def test_a_figure_at_the_edge_of_its_range_is_told_of_once() -> None:
    assert len(sentences(Watch(), "effective_sample_share", [0.49, 0.49, 0.51, 0.49, 0.51, 0.51] * 10)) == 1


def test_stale_ratios_runaway_values_and_large_updates_name_their_own_remedy() -> None:
    for name, value, remedy in (
        ("ratio_tail_share", 0.5, "what is learned from is stale"),
        ("value_scale", 20.0, "the value runs away from its targets"),
        ("value_scale", 0.001, "the value says the same of everything"),
        ("kl_proximal", 1.0, "updates are too large: lower --ppo.learning_rate"),
        ("kl", 1.0, "the acting policy is far behind"),
    ):
        (found,) = sentences(Watch(), name, [value] * ROWS)
        assert remedy in found
