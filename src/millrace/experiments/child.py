"""The process of one run: takes its job from standard input, and stops cleanly when that closes.

Standard input is the line to the parent: it closes when the parent asks to stop, and also when the parent is gone.
"""

from __future__ import annotations

import _thread
import dataclasses
import os
import pickle
import signal
import sys
import threading
from typing import NoReturn

from millrace.config import Config
from millrace.errors import MillraceError
from millrace.experiments.jobs import Job
from millrace.stop_signal import INTERRUPTED_EXIT_CODE
from millrace.training import train


def main() -> NoReturn:
    """Train, or go on where an earlier process of the same run stopped."""
    # A shell that starts programs in the background has them ignore the signal, which would end the line to the parent.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        job: Job = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_stop_when_let_go, daemon=True).start()
        sys.exit(_train(job))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)
    except MillraceError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _train(job: Job) -> int:
    result = train(
        job.factory or Config(),
        settings=dataclasses.asdict(job.config),
        network=job.network,
        init_from=job.init_from,
        auto_resume=True,
    )
    return INTERRUPTED_EXIT_CODE if result.interrupted else 0


def _stop_when_let_go() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _thread.interrupt_main(signal.SIGINT)
