"""Shards of a stage as jobs of a cluster's queue, by submitit: SLURM's, or processes of this machine.

Each job starts the stage as a person would, with ``--shard``. All that is known of the work lies in the
stage's own files, so a job may end anywhere, and be started again on another machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.running import stopping
from experiments.running.errors import StageError

SIGNAL_BEFORE = 120
"""Seconds before the end of a job's time at which it is asked to write its checkpoints."""
_TIMES = 1000
"""How often a job may reach the end of its time and be queued again: what is left decides, not a number."""
_ENDS_WITHIN = 600.0
"""Seconds in which whoever asked a stage to stop ends the job around it too."""


@dataclass(frozen=True)
class Resources:
    """What each job of the queue gets."""

    hours: float
    nodes: int = 1
    gpus: int = 1
    """On each node. One training runs over all of them, through torchrun if there is more than one."""
    cores: int = 1
    """On each node."""

    @property
    def processes(self) -> int:
        """On each node."""
        return max(1, self.gpus)


@dataclass
class ShardJob:
    """One shard of a stage: called by submitit inside a job, and asked for a checkpoint at its signal."""

    stage: str
    arguments: tuple[str, ...]
    shard: str
    resources: Resources
    _running: int | None = None
    _told_to_end: bool = False

    def __call__(self) -> int:
        """Runs the stage; its exit code."""
        signal.signal(signal.SIGTERM, self._note_the_end)
        # SLURM signals every process of a job. torchrun would end at once at SIGUSR1; its processes, like
        # those of a stage without it, listen by themselves.
        with subprocess.Popen(self._command(), preexec_fn=_ignore_sigusr1) as process:
            self._running = process.pid
            try:
                code = process.wait()
            except BaseException:
                process.terminate()
                raise
        self._running = None
        if code != 0 and (self._told_to_end or code in stopping.EXIT_CODES.values()):
            # A signal reached the stage directly. Whoever sent it ends this job too, or the same signal is
            # about to have ``checkpoint`` called, and the job queued again. A job that ended by itself now
            # would count as done.
            time.sleep(_ENDS_WITHIN)
        return code

    def checkpoint(self) -> Any:
        """Has the stage write its checkpoints; what is to be run when the job is queued again."""
        from submitit.helpers import DelayedSubmission

        if self._running is not None:
            _stop(self._running, signal.SIGTERM if self._is_group() else signal.SIGUSR1)
        return DelayedSubmission(ShardJob(self.stage, self.arguments, self.shard, self.resources))

    def _note_the_end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (a handler)
        self._told_to_end = True

    def _is_group(self) -> bool:
        return self.resources.nodes * self.resources.processes > 1

    def _command(self) -> list[str]:
        stage = ["-m", f"experiments.{self.stage}", *self.arguments, "--shard", self.shard]
        if not self._is_group():
            return [sys.executable, *stage, "--workers", "1"]
        return [sys.executable, "-m", "torch.distributed.run", *self._launch(), *stage]

    def _launch(self) -> list[str]:
        """How torchrun's processes find each other."""
        count = ["--nproc-per-node", str(self.resources.processes)]
        if self.resources.nodes == 1:
            return ["--standalone", *count]
        from submitit import JobEnvironment

        job = JobEnvironment()
        # Two jobs may have the same first node: each takes a port of its own.
        port = 20000 + int(job.raw_job_id) % 20000
        place = ["--nnodes", str(job.num_nodes), "--node-rank", str(job.node)]
        return [*place, "--master-addr", job.hostnames[0], "--master-port", str(port), *count]


class Queue:
    """Jobs that were handed to a queue.

    Args:
        jobs: what is in it.
        folder: for the jobs' own files and what they print.
        resources: of each job.
        local: whether the jobs are processes of this machine, all at once, and not SLURM's.
        options: further options of sbatch, such as ``{"partition": "gpu"}``.

    Raises:
        StageError: submitit or SLURM is missing, or SLURM refuses the jobs.
    """

    def __init__(
        self,
        jobs: Sequence[ShardJob],
        folder: Path,
        resources: Resources,
        *,
        local: bool,
        options: dict[str, str],
    ):
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read once, when it is imported
        try:
            import submitit
        except ModuleNotFoundError:
            raise StageError(
                "submitit is not installed; run 'pip install submitit', or use the script of the README"
            ) from None
        self.jobs = list(jobs)
        self.folder = folder
        self._local = local
        try:
            executor = submitit.AutoExecutor(
                folder, cluster="local" if local else "slurm", slurm_max_num_timeout=_TIMES
            )
        except RuntimeError:
            raise StageError("no SLURM here, as there is no 'srun'; add --local for this machine") from None
        executor.update_parameters(
            name=f"scene-parsing-{jobs[0].stage}",
            timeout_min=max(1, round(60 * resources.hours)),
            nodes=resources.nodes,
            tasks_per_node=1,
            cpus_per_task=resources.cores,
            **({"gpus_per_node": resources.gpus} if resources.gpus else {}),
            slurm_signal_delay_s=SIGNAL_BEFORE,
            slurm_setup=["export SUBMITIT_PREEMPT_SIGNAL=USR1"],
            # Since SLURM 22.05 a step does not take over the cores of its job by itself.
            slurm_srun_args=[f"--cpus-per-task={resources.cores}"],
            slurm_additional_parameters={"requeue": True, **options},
        )
        try:
            self._submitted = self._submit(executor, resources)
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise StageError(
                f"SLURM refuses the jobs: {lines[-1] if lines else type(error).__name__}"
            ) from None

    def _submit(self, executor: Any, resources: Resources) -> list[Any]:
        if not self._local:
            with executor.batch():
                return [executor.submit(job) for job in self.jobs]
        submitted = []
        for i, job in enumerate(self.jobs):
            if resources.gpus:
                gpus = range(i * resources.gpus, (i + 1) * resources.gpus)
                executor.update_parameters(local_visible_gpus=tuple(gpus))
            submitted.append(executor.submit(job))
        return submitted

    @property
    def name(self) -> str:
        """What the queue calls the jobs."""
        return str(self._submitted[0].job_id).partition("_")[0]

    def has_ended(self) -> bool:
        """Whether no job waits or runs any more."""
        if all(job.paths.result_pickle.exists() for job in self._submitted):
            return True
        if self._local:
            return all(job.done() for job in self._submitted)
        command = ["squeue", "--noheader", "--jobs", self.name]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:  # it does not know them any more, or cannot ask just now
            return "Invalid job id" in found.stderr
        return not found.stdout.strip()

    def cancel(self) -> None:
        """Ends jobs of this machine, which write their checkpoints first."""
        for job in self._submitted:
            job.cancel()

    def failures(self) -> list[str]:
        """What to say of the jobs that did not end well."""
        found = []
        for job, submitted in zip(self.jobs, self._submitted, strict=True):
            code = _exit_code(submitted)
            if code != 0:
                ending = "left no exit code" if code is None else f"exited with {code}"
                found.append(f"shard {job.shard} {ending}; it printed {submitted.paths.stderr}")
        return found


def _exit_code(submitted: Any) -> int | None:
    if not submitted.paths.result_pickle.exists():
        return None
    error = submitted.exception()
    return None if error is not None else int(submitted.result())


def _stop(process: int, number: signal.Signals) -> None:
    """Asks a process to stop until it has, at most as long as a job's time allows."""
    deadline = time.monotonic() + SIGNAL_BEFORE - 20
    with suppress(ProcessLookupError, ChildProcessError):
        while time.monotonic() < deadline:
            os.kill(process, number)  # again and again, as at first it may not listen yet
            again = time.monotonic() + 1
            while time.monotonic() < again:
                if os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                    return
                time.sleep(0.05)


def _ignore_sigusr1() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
