"""Games that fail while they are made. The process that loads a policy imports this file."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from toys import Clock


def hangs():
    time.sleep(600)


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def segfaults():
    ctypes.string_at(0)


def exits():
    print("the licence has expired", file=sys.stderr)
    os._exit(7)


def leaves():
    sys.exit("enough")


def raises():
    raise OSError("the level file is missing")


def lacks_a_library():
    raise ModuleNotFoundError("No module named 'ale_py'", name="ale_py")


def has_other_spaces():
    return Clock()


def prints():
    print('{"level": "ok"}')
    return Clock()
