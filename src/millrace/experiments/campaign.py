"""All runs of an experiment, from what the disk says of them to what they came to."""

from __future__ import annotations

from collections.abc import Iterator

from millrace.experiments.jobs import Job
from millrace.experiments.parallel import ParallelRuns
from millrace.experiments.progress import Progress
from millrace.experiments.records import RunRecord
from millrace.stop_signal import INTERRUPTED_EXIT_CODE


class Campaign:
    """Runs what is not finished yet.

    Attributes:
        records: of every job, by name, as far as they are.
        interrupted: whether a signal ended it.
    """

    def __init__(self, jobs: list[Job], progress: Progress) -> None:
        self._jobs, self._progress = jobs, progress
        self.records = {job.name: job.record() for job in jobs}
        self.interrupted = False

    def run(self, parallel: int) -> Iterator[None]:
        """Train, at most so many at a time; yields after each run that ends."""
        for name, record in self.records.items():
            if record.finished:
                self._progress.note(f"{name}: finished already, return {record.mean_return:.1f}")
        pending = [job for job in self._jobs if not self.records[job.name].finished]
        try:
            with ParallelRuns(pending, parallel) as runs:
                for ended in runs.watch():
                    if ended is None:
                        self._progress.show(runs.progress(), runs.num_waiting)
                        continue
                    job, self.records[job.name] = ended[0], ended[1]
                    self._progress.ended(job.name, ended[1])
                    yield
                self.interrupted = runs.interrupted
        finally:
            self._progress.close()


def exit_code_of(records: list[RunRecord]) -> int:
    """0 where all finished, the code of the first that failed, or that of an interruption."""
    failed = [record.exit_code for record in records if record.failed]
    if failed:
        return failed[0]
    return 0 if all(record.finished for record in records) else INTERRUPTED_EXIT_CODE
