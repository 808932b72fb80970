"""`millrace play`."""

from __future__ import annotations

from pathlib import Path

from millrace.checkpoints.store import PREFIX
from millrace.cli.commands.eval import add_playing
from millrace.cli.main import COMMANDS
from millrace.cli.output import number
from millrace.cli.parser import Parser

EXAMPLES = """\
  millrace play                                     the newest run, into its media/game.gif
  millrace play runs/mine --out game.mp4 --seed 7   MP4 needs the extra millrace[video]
  millrace play runs/mine --out strip.png --frames 6

Beside the game stand its return, the value and how probable each action is to the policy; --plain leaves them out."""


def parser() -> Parser:
    """The options of `play`."""
    options = Parser("play", f"{COMMANDS['play'].capitalize()}.", EXAMPLES)
    options.add_argument("run", metavar="RUN", nargs="?", help="a run or a checkpoint; the newest run if left out")
    add_playing(options)
    options.add_argument("--out", metavar="FILE", help="where to: NAME.gif, .mp4 or .png [RUN/media/game.gif]")
    options.add_argument("--fps", type=int, default=20, metavar="INT", help="pictures a second [20]")
    options.add_argument("--plain", action="store_true", help="the game alone")
    options.add_argument("--frames", type=int, default=9, metavar="INT", help="pictures in a PNG, evenly spaced [9]")
    return options


def run(words: list[str]) -> int:
    """Record a game."""
    arguments = parser().parse(words)
    from millrace.deploy.play import play
    from millrace.deploy.policy import load_policy

    policy = load_policy(arguments.run, trust=arguments.trust)
    target, episode_return = play(
        policy,
        arguments.out or _default_target(policy.checkpoint),
        arguments.env,
        seed=arguments.seed,
        fps=arguments.fps,
        deterministic=not arguments.stochastic,
        env_kwargs=arguments.settings.get("env.kwargs"),
        plain=arguments.plain,
        frames=arguments.frames,
    )
    print(f"{target}: one episode, return {number(episode_return)}")
    return 0


def _default_target(source: Path) -> Path:
    """In the run of a checkpoint; beside an exported file, or a checkpoint of RLlib's own."""
    if source.is_file():
        return source.with_suffix(".gif")
    run = source.parent.parent
    is_run = source.name.startswith(PREFIX) or (run / "config.toml").exists()
    return run / "media" / "game.gif" if is_run else source.with_name(f"{source.name}.gif")
