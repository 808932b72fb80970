"""`millrace replay`."""

from __future__ import annotations

from pathlib import Path

from millrace.cli.main import COMMANDS
from millrace.cli.output import print_json, print_table
from millrace.cli.parser import Parser

EXAMPLES = """\
  millrace replay runs/mine/crashes/worker-0-20260101-120000-000001.json
  gdb --args python -m millrace replay FILE --slot 3

exit code 0 if the crash came again, 1 if it did not."""

NOT_REPRODUCED = 1


def parser() -> Parser:
    """The options of `replay`."""
    options = Parser("replay", f"{COMMANDS['replay'].capitalize()}.", EXAMPLES)
    options.add_argument("crash", metavar="CRASH.json", type=Path, help="a file under a run's crashes/")
    options.add_argument("--slot", type=int, metavar="INT", help="only this slot, in this very process: for a debugger")
    options.add_argument("--env", default="", metavar="ENV", help="another environment than the file names")
    options.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="for each slot; longer counts as hung [120]"
    )
    options.add_argument("--json", action="store_true", help="one JSON object")
    return options


def run(words: list[str]) -> int:
    """Replay."""
    arguments = parser().parse(words)
    from millrace.cli.crash import Crash, play_slot_and_exit, replay

    crash = Crash.read(arguments.crash, arguments.env)
    if arguments.slot is not None:
        return play_slot_and_exit(crash, arguments.slot)
    replayed = list(replay(crash, arguments.env, arguments.timeout))
    again = [slot for slot in replayed if slot.crashed]
    if arguments.json:
        print_json({"reproduced": bool(again), "slots": [vars(slot) for slot in replayed]})
        return 0 if again else NOT_REPRODUCED
    print(f"{crash.message} ({crash.kind})\n")
    print_table([(str(s.slot), str(s.seed), str(s.steps), s.ended) for s in replayed], ("slot", "seed", "steps", "now"))
    if not replayed:
        print(
            "the file holds no episodes: the worker failed before its first step, was an actor on Ray that was killed, "
            "or collect.action_log_steps=0"
        )
    if again:
        print(f"\nreproduced in slot {again[0].slot}:\n\n{again[0].traceback.rstrip()}")
    else:
        print(
            "\nnot reproduced"
            + (f"; the worker's own traceback was:\n\n{crash.traceback.rstrip()}" if crash.traceback else "")
        )
    return 0 if again else NOT_REPRODUCED
