"""Trainings handed to a queue; SLURM itself is tried in tests/cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Workspace, stage_environment, wait_until_gone

from experiments.config.params import load_params
from experiments.running.cluster import Resources, ShardJob
from experiments.samples.identity import Identities
from experiments.training.checkpoints import read_checkpoint
from experiments.training.jobs import share_done, training_jobs

CPU = ("train", "--gpus-per-job", "0")


@pytest.mark.pipeline
def test_jobs_of_this_machine_train_everything_and_stop_with_the_command(prepared: Workspace) -> None:
    # A growing history is written after two seconds: on a fast machine 60 steps had ended by then.
    prepared.profile["recipe"]["steps"] = 300
    prepared.profile["training"]["checkpoint_every"] = 1000
    prepared.write()
    command = [sys.executable, "-m", "experiments.cluster", *CPU, "gun-small", "--local", "--array", "8"]
    running = subprocess.Popen(command, env=stage_environment(), stdout=subprocess.PIPE, text=True)
    folder = Path("results/tiny/train/gun-small/seed-0")
    deadline = time.monotonic() + 120
    while not (folder / "history.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=60)
    wait_until_gone(prepared.folder)
    assert running.returncode == 143
    assert "cluster: 1 job of this machine" in said
    assert 0 < read_checkpoint(folder / "checkpoint.pt")["step"] < 300
    done = prepared.stage("cluster", *CPU, "--local", "--array", "2", "--seeds", "0")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 trainings done" in done.stdout
    assert (
        "nothing to do, 2 trainings there" in prepared.call("train") + prepared.stage("cluster", *CPU).stdout
    )


def test_a_job_that_fails_is_told_with_its_file(prepared: Workspace) -> None:
    prepared.profile["recipe"] |= {"learning_rate": {"sgd": 1e30}, "steps": 20}
    prepared.write()
    done = prepared.stage("cluster", *CPU, "gun-small", "--local")
    assert done.returncode == 1
    assert "cluster: shard 1/1 exited with 1; it printed " in done.stderr
    assert done.stderr.splitlines()[-1] == "cluster: 1 training not done: gun-small seed 0"
    log = next(Path(".cache/cluster/train").glob("*_log.err")).read_text()
    assert "gun-small seed 0: the loss is not finite" in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--array", "0"), "argument --array: '0'; expected a whole number from 1 to 999999999"),
        (
            ("--slurm", "partition"),
            "argument --slurm: 'partition'; expected NAME=VALUE, such as partition=gpu",
        ),
        (
            ("--nodes", "2"),
            "--nodes 2 with --gpus-per-job 1; several machines need SLURM, and as many GPUs on each",
        ),
        (("--local", "--gpus-per-job", "99"), "the jobs want 198 GPUs at once, this machine has"),
        (("--gpus-per-job", "0"), "no SLURM here, as there is no 'srun'; add --local for this machine"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    prepared: Workspace, arguments: tuple[str, ...], message: str
) -> None:
    done = prepared.stage("cluster", "train", *arguments, PATH=str(Path(sys.executable).parent))
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]
    assert not Path("results").exists()


def test_one_training_over_several_gpus_goes_through_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    for name, value in (
        ("JOB_ID", "123"),
        ("JOB_NODELIST", "n[1-2]"),
        ("JOB_NUM_NODES", "2"),
        ("NODEID", "1"),
    ):
        monkeypatch.setenv(f"SLURM_{name}", value)
    job = ShardJob("train", ("gun-small",), "3/8", Resources(1.0, nodes=2, gpus=4))
    assert job._command()[1:] == [
        *("-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", "1"),
        *("--master-addr", "n1", "--master-port", "20123", "--nproc-per-node", "4"),
        *("-m", "experiments.train", "gun-small", "--shard", "3/8"),
    ]


def test_a_training_is_not_done_before_its_weights_are_written(prepared: Workspace) -> None:
    """Its history is written first: whoever waits for the last step alone finds it unfinished."""
    params = load_params()
    work = training_jobs(params.paths, Identities(params.runs(), [0]), ["gun-small"], [0])[0]
    assert share_done(work) == 0
    assert not prepared.call("train", "gun-small")
    assert share_done(work) == 1
    Path("results/tiny/train/gun-small/seed-0/run.json").unlink()
    assert 0.5 < share_done(work) < 1
