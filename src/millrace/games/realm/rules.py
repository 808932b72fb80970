"""The numbers of Realm: its rules in two sizes, its reward terms and its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, SupportsFloat

import numpy as np
import numpy.typing as npt

Size = Literal["mini", "full"]

BUFF_ID = 0
END_ID = 1
START_ID = 2
FIRST_PLACE_ID = 3
"""Points from here on are treasure places. Ids follow the original's standard task (start 2, end 1)."""

CELL_UNITS = 500
"""Side of a cell in world units, the same in every size: a constant, because the kernels divide by it all the time."""

NUM_DIRECTIONS = 8
NUM_ACTIONS = 16
MEMORY_CAP = 5
"""Visits are remembered up to this many; the map observation stores 0..5 for the original's 0..1 in steps of 0.2, and 5
for the original's 1 in the planes that know only yes and no."""


@dataclass(frozen=True)
class RealmRules:
    """One size of the game. World units are the original's: a cell is 500 of them, one step about 0.2 s."""

    name: str
    """Size as `make_game` and the frozen map know it."""
    width_cells: int
    """Cells along each side of the square world."""
    view_radius_cells: int
    """The map observation spans this many cells to each side of the hero."""
    num_places: int
    """Places that may hold a treasure (point ids 3..)."""
    default_treasures: int
    """Treasures in an episode when the options name no number."""
    max_step: int
    """Steps after which an unfinished episode is truncated."""
    flash_units: int
    """Length of a flash, straight over obstacles."""
    flash_cooldown_steps: int
    """A flash is legal again this many steps after the last one."""
    buff_steps: int
    """Steps the speed buff lasts after the step that picked it up."""
    distance_scale_cells: int
    """Grid distances are divided by this in the vector observation and capped at 1."""
    trigger_units: int = 1000
    """A point is touched within this distance of it."""
    walk_units: int = 700
    """Length of a walking step."""
    buff_walk_units: int = 1000
    """Length of a walking step under the buff."""
    sub_moves: int = 3
    """A walking step is made in this many parts, each checked for obstacles and triggers."""
    walk_wall_units: int = 600
    """A walk shorter than this met a wall."""
    buff_walk_wall_units: int = 900
    """The same under the buff."""
    flash_wall_margin_units: int = 100
    """A flash shorter than its length by more than this was blocked."""
    buff_respawn_steps: int = 454
    """The buff is back this many steps after it was taken."""
    step_score: float = 0.2
    """Score for each step left over at the end."""
    treasure_score: float = 100.0
    """Score for a treasure."""
    end_score: float = 150.0
    """Score for reaching the end."""

    FULL: ClassVar[RealmRules]
    MINI: ClassVar[RealmRules]

    @property
    def num_points(self) -> int:
        """Fixed points of a map: buff, end, start and the treasure places."""
        return FIRST_PLACE_ID + self.num_places

    @property
    def view_cells(self) -> int:
        """Side of the map observation in cells."""
        return 2 * self.view_radius_cells + 1

    @property
    def world_units(self) -> int:
        """Side of the world."""
        return self.width_cells * CELL_UNITS

    @property
    def vector_size(self) -> int:
        """Length of the vector observation: position 2, present and distance of each place, buff 2, end 1."""
        return 2 * self.num_places + 5

    @classmethod
    def of_size(cls, size: str) -> RealmRules:
        """The rules called `size`."""
        known = {rules.name: rules for rules in (cls.MINI, cls.FULL)}
        if size not in known:
            raise ValueError(f"Realm has no size {size!r}; sizes are {', '.join(known)}")
        return known[size]


RealmRules.FULL = RealmRules(
    name="full",
    width_cells=128,
    view_radius_cells=25,
    num_places=13,
    default_treasures=9,
    max_step=2000,
    flash_units=8000,
    flash_cooldown_steps=606,
    buff_steps=50,
    distance_scale_cells=256,
)
RealmRules.MINI = RealmRules(
    name="mini",
    width_cells=32,
    view_radius_cells=7,
    num_places=6,
    default_treasures=3,
    max_step=400,
    flash_units=4000,
    flash_cooldown_steps=150,
    buff_steps=25,
    distance_scale_cells=128,
)


@dataclass(frozen=True)
class RealmReward:
    """Weight of each term of the training reward; 0 switches a term off. The score does not depend on it.

    The reward of a step is `scale` times the sum of the terms. With the documented 0.1 an episode's reward
    is of the order of tens, which suits a learner that normalises returns; lower `scale` for one that does not.
    """

    treasure: float = 100.0
    """For each treasure taken."""
    end: float = 150.0
    """For reaching the end."""
    missed_treasure: float = -200.0
    """For each treasure still lying when the end is reached.

    The original's is -100. With that, 5 of 13 short trainings on RealmMini settled on never fetching one place
    (score 470 of 522); with -200 none of 14 did (ours, measured, flash factors 1 and 5 mixed in both).
    """
    missed_buff: float = 0.0
    """For reaching the end without having taken the buff; the original's is -5."""
    dynamic_treasure: float = 0.0
    """From 0, all treasures alike, to 1: `treasure` and `missed_treasure` are multiplied, for each treasure, by
    1 + its misses over the mean of that for the episode's treasures, 0.5 at least.

    Misses are counted in the slot's finished episodes and begin anew after 100; so rewards then depend on earlier
    episodes of the slot, though nothing else does.
    """
    approach_treasure: float = 1.0
    """For each cell of grid distance gained on the nearest treasure (negative when lost)."""
    approach_end: float = 1.0
    """For each cell of grid distance gained on the end, once no treasure is left."""
    approach_any_treasure: float = 0.0
    """For each cell gained on the treasure that the step approached most, as the original counts it."""
    approach_end_always: float = 0.0
    """For each cell gained on the end in every step, as the original counts it."""
    flash_factor: float = 5.0
    """The approach terms are multiplied by this in a step that flashes."""
    buff: float = 5.0
    """For picking up the buff."""
    wall: float = -1.0
    """For a walking step that met a wall."""
    blocked_flash: float = -10.0
    """For a flash that was blocked."""
    repeat: float = -1.0
    """For a step that ends in a cell remembered above `repeat_above`."""
    repeat_above: float = 0.4
    """Memory of a cell, 0.2 for each visit up to 1, above which it counts as repeated; 0.4: three visits or more."""
    step: float = -0.2
    """For every step."""
    scale: float = 0.1
    """Factor on the sum of all terms."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not np.isfinite(getattr(self, field.name)):
                raise ValueError(f"Realm reward {field.name}={getattr(self, field.name)} must be a finite number")

    @classmethod
    def from_mapping(cls, weights: Mapping[str, float]) -> RealmReward:
        """The default weights with those in `weights` replaced."""
        return cls().replaced(weights)

    def replaced(self, weights: Mapping[str, float]) -> RealmReward:
        """These weights with those in `weights` replaced."""
        unknown = sorted(set(weights) - {field.name for field in fields(self)})
        if unknown:
            known = ", ".join(field.name for field in fields(self))
            raise ValueError(f"Realm has no reward term {unknown[0]!r}; terms are {known}")
        return replace(self, **{name: _number(f"reward.{name}", weight) for name, weight in weights.items()})


FIXED_OPTIONS = {
    "map": "its maps are laid out once",
    "points": "its maps are laid out once",
    "num_maps": "its maps are laid out once",
    "map_seed": "its maps are laid out once",
    "rules": "episodes in progress are under them",
    "flip_map": "observations of one run must agree",
}
"""Options that a game keeps, and why."""
REWARD_TERM = "reward."
"""Before the name of a single reward term among changed options."""


@dataclass(frozen=True)
class RealmOptions:
    """What may differ between two games of one size. `None` takes the size's own number."""

    n_treasures: int | Literal["uniform", "norm"] | None = None
    """Treasures in an episode; "uniform": 0 to all places alike; "norm": weights of a normal around half of them."""
    random_start: float = 0.0
    """Probability that an episode starts at a random walkable cell instead of the start point."""
    max_step: int | None = None
    """Steps until truncation."""
    rules: Literal["2024", "2025"] = "2024"
    """A flash into an obstacle stays put (2024) or lands on the nearest walkable place (2025)."""
    map: str = "frozen"
    """"frozen": the size's own map; "random": maps from the generator; otherwise the path of a map JSON."""
    points: str = ""
    """With a map JSON: the path of a JSON with its points, if they are not in the map's own file."""
    num_maps: int = 1
    """With random maps: how many there are; an episode's seed picks one."""
    map_seed: int = 0
    """With random maps: which ones."""
    flip_map: bool = False
    """Row 0 of the map observation is the smallest z, as in the original, instead of the largest."""
    reward: RealmReward = RealmReward()
    """Weights of the training reward."""
    score_info_fault: float = 0.0
    """Probability that a step's score is lost, as happened in the original: the step's reward is NaN, which costs a
    learner that step."""

    @classmethod
    def from_arguments(cls, **arguments: Any) -> RealmOptions:
        """Options by keyword, where `reward` may be a mapping of term to weight."""
        unknown = sorted(set(arguments) - {field.name for field in fields(cls)})
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"Realm has no option {unknown[0]!r}; options are {known}")
        return cls(**{**arguments, "reward": as_reward(arguments.get("reward", cls.reward))})

    def changed(self, changes: Mapping[str, Any]) -> RealmOptions:
        """These options with some changed, a single reward term by `reward.TERM`; only those a live game can take."""
        for name in changes:
            if name in FIXED_OPTIONS:
                raise ValueError(
                    f"Realm option {name} cannot change on a live game: {FIXED_OPTIONS[name]}; make a new game"
                )
        plain = {name: value for name, value in changes.items() if not name.startswith(REWARD_TERM)}
        terms = {name.removeprefix(REWARD_TERM): v for name, v in changes.items() if name.startswith(REWARD_TERM)}
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = self.from_arguments(**{**own, **plain})
        return replace(changed, reward=changed.reward.replaced(terms))

    def check(self, rules: RealmRules) -> None:
        """Raise ValueError for a value that the size cannot play."""
        self._check_treasures(rules)
        for name in ("random_start", "score_info_fault"):
            if not 0.0 <= _number(name, getattr(self, name)) <= 1.0:
                raise ValueError(f"Realm option {name}={getattr(self, name)} must be a probability, 0 to 1")
        if self.max_step is not None and not (_is_whole(self.max_step) and 1 <= self.max_step <= rules.max_step):
            raise ValueError(f"Realm option max_step={self.max_step} must be 1 to {rules.max_step}, a whole number")
        if self.rules not in ("2024", "2025"):
            raise ValueError(f"Realm option rules={self.rules!r} must be '2024' or '2025'")
        if self.num_maps < 1 or (self.num_maps > 1 and self.map != "random"):
            raise ValueError(f"Realm option num_maps={self.num_maps} needs map='random' and must be 1 or more")
        if self.points and self.map in ("frozen", "random"):
            raise ValueError(f"Realm option points={self.points!r} needs map=PATH: the {self.map} map has its own")

    def _check_treasures(self, rules: RealmRules) -> None:
        number = self.n_treasures
        if number is None or number in ("uniform", "norm"):
            return
        if not _is_whole(number) or not 0 <= int(number) <= rules.num_places:
            raise ValueError(
                f"Realm option n_treasures={number!r} must be a whole number from 0 to {rules.num_places}, "
                "'uniform' or 'norm'"
            )


def as_reward(weights: RealmReward | Mapping[str, float]) -> RealmReward:
    """Reward weights from themselves, or from a mapping of those that differ from the defaults."""
    if isinstance(weights, RealmReward):
        return weights
    if isinstance(weights, Mapping):
        return RealmReward.from_mapping(weights)
    raise ValueError(f"Realm option reward={weights!r} must be a mapping of terms to weights")


def _number(name: str, value: Any) -> float:
    if isinstance(value, str | bool) or not isinstance(value, SupportsFloat):
        raise ValueError(f"Realm option {name}={value!r} must be a number")
    return float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def treasure_count_distribution(options: RealmOptions, rules: RealmRules) -> npt.NDArray[np.float64]:
    """Cumulative probability of 0, 1, .. num_places treasures, shape (num_places + 1,).

    "norm" is the original's normal over its 13 places (mean 6.5, sigma 3.0), shrunk to the places there are.
    """
    counts = np.arange(rules.num_places + 1)
    number = options.n_treasures if options.n_treasures is not None else rules.default_treasures
    if number == "uniform":
        weights = np.ones(len(counts))
    elif number == "norm":
        weights = np.exp(-0.5 * ((counts - rules.num_places / 2) / (3.0 * rules.num_places / 13)) ** 2)
    else:
        weights = (counts == number).astype(np.float64)
    cumulative: npt.NDArray[np.float64] = np.cumsum(weights / weights.sum())
    cumulative[-1] = 1.0
    return cumulative
