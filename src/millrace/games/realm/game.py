"""Realm as a batched game."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from millrace.games.protocol import BoolArray, GameState, Observation, ObservationField
from millrace.games.realm.generator import generate_map
from millrace.games.realm.kernels import (
    FINISHED,
    NOT_BEGUN,
    EpisodeOptions,
    Numbers,
    Slots,
    Weights,
    observe_all,
    reset_slots,
    step_all,
)
from millrace.games.realm.maps import RealmMap, frozen_map, load_map, stack_maps
from millrace.games.realm.rules import (
    MEMORY_CAP,
    NUM_ACTIONS,
    RealmOptions,
    RealmReward,
    RealmRules,
    treasure_count_distribution,
)

if TYPE_CHECKING:
    from millrace.games.realm.render import CellValues


def make_game(size: str, num_slots: int, **options: Any) -> RealmGame:
    """Realm of a size ("mini" or "full") with the options of `RealmOptions` by keyword."""
    return RealmGame(RealmRules.of_size(size), num_slots, RealmOptions.from_arguments(**options))


class RealmGame:
    """B episodes of Realm on one or several maps. Implements `BatchedGame`."""

    num_actions = NUM_ACTIONS

    def __init__(
        self,
        rules: RealmRules,
        num_slots: int,
        options: RealmOptions | None = None,
        maps: list[RealmMap] | None = None,
    ) -> None:
        """`maps` replaces the ones that the options name; an episode's seed picks one of them."""
        if num_slots < 1:
            raise ValueError(f"num_slots={num_slots} must be 1 or more")
        self.rules = rules
        self.num_slots = num_slots
        self.options = options if options is not None else RealmOptions()
        """Those of the next episodes; an episode in progress keeps the ones that it began with."""
        self.options.check(rules)
        self.observation_fields: Mapping[str, ObservationField] = observation_fields(rules)
        self.numbers = _numbers(rules, self.options)
        self.maps = stack_maps(maps if maps is not None else _maps_of(rules, self.options), rules)
        self.slots = _new_slots(rules, num_slots)
        self._episode_options = _episode_options(rules, self.options)

    def reset(self, slots: BoolArray, seeds: npt.NDArray[np.uint64]) -> None:
        """See `BatchedGame`."""
        reset_slots(self.numbers, self.maps, self.slots, self._episode_options, slots, seeds)

    def set_options(self, options: Mapping[str, Any]) -> None:
        """See `BatchedGame`. What can change is n_treasures, random_start, max_step, score_info_fault, and reward as a
        mapping or by single terms (`{"reward.step": -0.2}`); a mapping starts from the default weights."""
        changed = self.options.changed(options)
        changed.check(self.rules)
        self.options, self._episode_options = changed, _episode_options(self.rules, changed)

    def step(
        self,
        action: npt.NDArray[np.int64],
        active: BoolArray,
        reward: npt.NDArray[np.float32],
        terminated: BoolArray,
        truncated: BoolArray,
    ) -> None:
        """See `BatchedGame`."""
        stuck = step_all(self.numbers, self.maps, self.slots, action, active, reward, terminated, truncated)
        if stuck >= 0:
            raise ValueError(self._why_stuck(stuck, int(action[stuck])))

    def observe(self, observation: Observation) -> None:
        """See `BatchedGame`."""
        observe_all(
            self.numbers,
            self.maps,
            self.slots,
            observation["map"],
            observation["vector"],
            observation["action_mask"],
        )

    def episode_figures(self, slot: int) -> dict[str, float]:
        """Score and its parts, which are all 0 unless the end was reached, and what happened on the way."""
        slots, rules = self.slots, self.rules
        left = int(slots.treasures[slot]).bit_count()
        taken = int(slots.placed[slot]).bit_count() - left
        finished = int(slots.status[slot] == FINISHED)
        treasure_score = finished * rules.treasure_score * taken
        end_score = finished * rules.end_score
        step_score = finished * rules.step_score * (int(slots.max_step[slot]) - int(slots.steps[slot]))
        return {
            "score": treasure_score + end_score + step_score,
            "treasure_score": treasure_score,
            "end_score": end_score,
            "step_score": step_score,
            "finished": float(finished),
            "treasures": float(taken),
            "treasures_missed": float(left),
            "buff_missed": float(slots.buffs[slot] == 0),
            "flashes": float(slots.flashes[slot]),
            "wall_hits": float(slots.wall_hits[slot]),
            "steps": float(slots.steps[slot]),
        }

    def save_state(self) -> GameState:
        """See `BatchedGame`. Maps are the game's, not the state's; so are the options of episodes to come."""
        return {name: array.copy() for name, array in self.slots._asdict().items()}

    def load_state(self, state: GameState) -> None:
        """See `BatchedGame`."""
        own = self.slots._asdict()
        if state.keys() != own.keys():
            raise ValueError(f"not a state of Realm: its arrays are {sorted(state)}, needed are {sorted(own)}")
        for name, array in own.items():
            if state[name].shape != array.shape or state[name].dtype != array.dtype:
                raise ValueError(
                    f"state of another Realm: {name} is {state[name].dtype}{state[name].shape}, "
                    f"here {array.dtype}{array.shape}"
                )
        if int(state["map_index"].max()) >= len(self.maps.walkable):
            raise ValueError(f"state of another Realm: it plays on more than {len(self.maps.walkable)} maps")
        for name, array in own.items():
            np.copyto(array, state[name])

    def observe_at(self, slot: int, positions: npt.NDArray[np.int64]) -> Observation:
        """What a slot's hero would observe at each of N positions [N, 2] in the open, all else as it is; [N, ...]."""
        observation = {
            name: np.zeros((len(positions), *field.shape), dtype=field.dtype)
            for name, field in self.observation_fields.items()
        }
        moved = Slots(*(array[slot : slot + 1].copy() for array in self.slots))
        for i, position in enumerate(positions):
            moved.position[0] = position
            arrays = [observation[name][i : i + 1] for name in ("map", "vector", "action_mask")]
            observe_all(self.numbers, self.maps, moved, *arrays)
        return observation

    def render(self, slot: int, scale: int | None = None, values: CellValues | None = None) -> npt.NDArray[np.uint8]:
        """Picture [H, W, 3] of a slot; needs Pillow.

        `values` colours the ground: a function from positions [N, 2], the middles of all walkable cells, to a value
        each. `observe_at` makes the observations that a network needs for that.
        """
        from millrace.games.realm.render import render_slot

        return render_slot(self, slot, scale, values)

    def close(self) -> None:
        """See `BatchedGame`."""

    def _why_stuck(self, slot: int, action: int) -> str:
        if not 0 <= action < NUM_ACTIONS:
            return f"Realm slot {slot}: action {action} is outside 0..{NUM_ACTIONS - 1}"
        if self.slots.status[slot] == NOT_BEGUN:
            return f"Realm slot {slot} was stepped before its first reset"
        return f"Realm slot {slot} was stepped after its episode ended; reset it first"


def observation_fields(rules: RealmRules) -> dict[str, ObservationField]:
    """Arrays of one slot's observation."""
    side = rules.view_cells
    return {
        "map": ObservationField((4, side, side), np.dtype(np.uint8), 0, MEMORY_CAP),
        "vector": ObservationField((rules.vector_size,), np.dtype(np.float32), 0, 1),
        "action_mask": ObservationField((NUM_ACTIONS,), np.dtype(np.uint8), 0, 1),
    }


def _maps_of(rules: RealmRules, options: RealmOptions) -> list[RealmMap]:
    if options.map == "frozen":
        return [frozen_map(rules)]
    if options.map == "random":
        return [generate_map(rules, options.map_seed, index) for index in range(options.num_maps)]
    return [load_map(options.map, rules, options.points or None)]


def _numbers(rules: RealmRules, options: RealmOptions) -> Numbers:
    return Numbers(
        trigger_units=rules.trigger_units,
        num_places=rules.num_places,
        view_radius=rules.view_radius_cells,
        walk_units=rules.walk_units,
        buff_walk_units=rules.buff_walk_units,
        flash_units=rules.flash_units,
        sub_moves=rules.sub_moves,
        walk_wall_units=rules.walk_wall_units,
        buff_walk_wall_units=rules.buff_walk_wall_units,
        flash_wall_units=rules.flash_units - rules.flash_wall_margin_units,
        flash_cooldown=rules.flash_cooldown_steps,
        buff_steps=rules.buff_steps,
        buff_respawn=rules.buff_respawn_steps,
        distance_scale=float(rules.distance_scale_cells),
        treasure_score=rules.treasure_score,
        step_score=rules.step_score,
        flash_lands_near=options.rules == "2025",
        flip_map=bool(options.flip_map),
    )


def _episode_options(rules: RealmRules, options: RealmOptions) -> EpisodeOptions:
    return EpisodeOptions(
        count_distribution=treasure_count_distribution(options, rules),
        random_start=float(options.random_start),
        max_step=int(options.max_step) if options.max_step is not None else rules.max_step,
        score_info_fault=float(options.score_info_fault),
        weights=_weights(options.reward),
    )


def _weights(reward: RealmReward) -> npt.NDArray[np.float64]:
    """The reward terms in the order of `Weights`, with the scale in those that it applies to."""
    unscaled = ("flash_factor", "repeat_above", "dynamic_treasure")
    return np.array([getattr(reward, name) * (1.0 if name in unscaled else reward.scale) for name in Weights._fields])


def _new_slots(rules: RealmRules, num_slots: int) -> Slots:
    padded = rules.width_cells + 2 * rules.view_radius_cells
    per_point = (num_slots, rules.num_points)
    arrays: dict[str, npt.NDArray[Any]] = {
        "seed": np.zeros(num_slots, dtype=np.uint64),
        "score_info_fault": np.zeros(num_slots, dtype=np.float64),
        "weights": np.zeros((num_slots, len(Weights._fields)), dtype=np.float64),
        "worth": np.ones(per_point, dtype=np.float64),
        "misses": np.zeros(per_point, dtype=np.int32),
        "position": np.zeros((num_slots, 2), dtype=np.int64),
        "memory": np.zeros((num_slots, padded, padded), dtype=np.uint8),
        "trail": np.zeros((num_slots, rules.max_step + 1, 2), dtype=np.uint16),
    }
    scalars = {name: np.zeros(num_slots, dtype=np.int32) for name in Slots._fields if name not in arrays}
    return Slots(**arrays, **scalars)
