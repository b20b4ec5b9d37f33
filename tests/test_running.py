"""Jobs, workers, locks, stopping and storage: what every stage stands on."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Workspace, stage_environment, wait_until_gone, workers_in

from experiments.running import command, locks, stopping, storage
from experiments.running.errors import StageError
from experiments.running.jobs import Job, Outcome, Pool, do_jobs, finish
from experiments.running.locks import Locks
from experiments.running.machine import cpu_name
from experiments.running.work import Context
from experiments.running.workers import Worker, WorkerDiedError, ask


def write_number(context: Context, path: Path, number: int) -> str:
    """A job: writes a file."""
    context.progress(0.5)
    storage.write_text(path, str(number))
    return f"wrote {number}"


def count_threads(context: Context, path: Path, number: int) -> str:
    """A job: writes with how many threads torch works."""
    return write_number(context, path, torch.get_num_threads())


def fail(context: Context, path: Path, number: int) -> str:
    """A job that cannot be done."""
    raise StageError(f"number {number} is\nbroken; mend it")


def crash(context: Context, path: Path, number: int) -> str:
    """A job with a bug."""
    raise ZeroDivisionError("a bug")


def die(context: Context, path: Path, number: int) -> str:
    """A job that ends its process, the first time that it is tried or always."""
    tried = path.with_suffix(".tried")
    if number < 0 or not tried.exists():
        tried.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return write_number(context, path, number)


def kill_the_server(context: Context, path: Path, number: int) -> str:
    """A job that ends the process off which its own was forked."""
    os.kill(os.getppid(), signal.SIGKILL)
    return write_number(context, path, number)


def wait_for_the_end(context: Context, path: Path, number: int) -> str:
    """A job that lasts until it is asked to stop."""
    path.with_suffix(".started").write_text("")
    while not stopping.requested():
        time.sleep(0.01)
    raise stopping.Stopped("half way")


def job(folder: Path, number: int, work: Any = write_number) -> Job:
    path = folder / f"{number}.txt"
    return Job(
        f"job {number}",
        f"digest{number}",
        f"test_running:{work.__name__}",
        {"path": path, "number": number},
        path.is_file,
    )


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    stopping.reset()
    yield
    stopping.reset()


@pytest.mark.parametrize("workers", [0, 1, 3])
class TestJobs:
    def test_outstanding_jobs_are_done_and_done_ones_are_not_done_again(
        self, tmp_path: Path, workers: int
    ) -> None:
        (tmp_path / "2.txt").write_text("old")
        outcome = do_jobs("t", [job(tmp_path, n) for n in range(5)], Pool(workers, 1), tmp_path / "locks")
        assert outcome == Outcome(done=4)
        assert [(tmp_path / f"{n}.txt").read_text() for n in range(5)] == ["0", "1", "old", "3", "4"]
        assert not (tmp_path / "locks").exists()
        assert (
            do_jobs("t", [job(tmp_path, n) for n in range(5)], Pool(workers, 1), tmp_path / "locks")
            == Outcome()
        )

    def test_torch_has_the_number_of_threads_that_is_part_of_a_result(
        self, tmp_path: Path, workers: int
    ) -> None:
        before, pool = torch.get_num_threads(), Pool(workers, 3, imports=["torch"])
        outcome = do_jobs("t", [job(tmp_path, 0, count_threads)], pool, tmp_path / "locks")
        torch.set_num_threads(before)
        assert outcome == Outcome(done=1)
        assert (tmp_path / "0.txt").read_text() == "3"

    def test_a_job_that_fails_does_not_stop_the_others(
        self, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        work = [job(tmp_path, 0), job(tmp_path, 1, fail), job(tmp_path, 2, crash), job(tmp_path, 3)]
        outcome = do_jobs("t", work, Pool(workers, 1), tmp_path / "locks")
        assert outcome.done == 2
        assert outcome.failed == {"job 1": "number 1 is broken; mend it", "job 2": "ZeroDivisionError: a bug"}
        with pytest.raises(SystemExit) as stopped:
            finish("t", outcome)
        assert stopped.value.code == 1
        assert "t: job 1: number 1 is broken; mend it\n" in capsys.readouterr().err

    def test_work_that_was_asked_to_stop_says_what_is_left(
        self, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ask("os:getpid")  # which has waited for a server to start
        stopping.set_deadline(1.5)
        work = [job(tmp_path, n, wait_for_the_end) for n in range(5)]
        outcome = do_jobs("t", work, Pool(workers, 1), tmp_path / "locks")
        assert sorted(outcome.left) == [f"job {n}" for n in range(5)]
        assert len(list(tmp_path.glob("*.started"))) == max(1, workers)
        with pytest.raises(SystemExit) as stopped:
            finish("t", outcome)
        assert stopped.value.code == stopping.OUT_OF_TIME
        assert "stopped with 5 jobs left" in capsys.readouterr().err
        assert not (tmp_path / "locks").exists()


class TestWorkers:
    def test_a_worker_that_dies_is_replaced_and_its_job_tried_once_more(self, tmp_path: Path) -> None:
        work = [job(tmp_path, 0, die), job(tmp_path, 1), job(tmp_path, -2, die)]
        outcome = do_jobs("t", work, Pool(2, 1), tmp_path / "locks")
        assert outcome.done == 2
        assert outcome.failed == {"job -2": "its worker process died twice (signal SIGKILL)"}

    def test_work_goes_on_when_the_process_that_forks_workers_dies(self, tmp_path: Path) -> None:
        pool = Pool(1, 1, imports=("wave",))  # nobody else's server
        work = [job(tmp_path, 0, kill_the_server), job(tmp_path, 1), job(tmp_path, 2, die)]
        assert do_jobs("t", work, pool, tmp_path / "locks") == Outcome(done=3)

    def test_a_worker_can_be_asked_to_stop_when_the_process_that_forked_it_has_died(
        self, tmp_path: Path
    ) -> None:
        worker = Worker(None, 1, ("chunk",))  # nobody else's server
        worker.give("test_running:wait_for_the_end", {"path": tmp_path / "1.txt", "number": 1})
        _until((tmp_path / "1.started").exists)
        server = int(Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGKILL)
        _until(lambda: not Path(f"/proc/{server}/cwd").exists())
        worker.stop()
        assert [message for _, message in Worker.messages([worker], 10)] == [("stopped", "half way")]
        worker.close()

    def test_what_ends_a_forked_process_is_shown(self, tmp_path: Path) -> None:
        code = (
            "from experiments.running.server import Forked\n"
            "assert Forked([], 'json:nothing_of_this_name', []).exit_status(10) == 1\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "AttributeError: module 'json' has no attribute 'nothing_of_this_name'" in done.stderr

    def test_an_answer_comes_from_a_process_that_may_import_torch(self) -> None:
        assert ask("test_running:_torch_version") == _torch_version()

    def test_an_expected_error_keeps_its_type(self) -> None:
        with pytest.raises(StageError, match="as expected"):
            ask("test_running:_raise_expected")
        with pytest.raises(WorkerDiedError, match="ZeroDivisionError"):
            ask("test_running:_raise_unexpected")


def _torch_version() -> str:
    import torch

    return torch.__version__


def _raise_expected() -> None:
    raise StageError("as expected")


def _raise_unexpected() -> None:
    raise ZeroDivisionError


class TestLocks:
    def test_only_one_of_two_holds_a_lock(self, tmp_path: Path) -> None:
        with Locks(tmp_path / "locks") as ours, Locks(tmp_path / "locks") as theirs:
            assert ours.acquire("a") is None
            holder = theirs.acquire("a")
            assert holder == f"process {os.getpid()} on {socket.gethostname()}"
            assert theirs.acquire("b") is None
            ours.release("a")
            assert theirs.acquire("a") is None
        assert not (tmp_path / "locks").exists()

    def test_of_many_at_once_one_gets_it(self, tmp_path: Path) -> None:
        winners = []

        def run() -> None:
            with Locks(tmp_path / "locks") as mine:
                if mine.acquire("a") is None:
                    winners.append(threading.get_ident())
                    barrier.wait(10)
                else:
                    barrier.wait(10)

        barrier = threading.Barrier(8)
        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1

    def test_a_lock_of_a_dead_process_is_taken_over_with_a_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        (tmp_path / "a.lock").write_text(
            json.dumps({"host": socket.gethostname(), "process": dead.pid, "started": "1"})
        )
        assert locks.live(tmp_path) == []
        with Locks(tmp_path) as ours:
            assert ours.acquire("a") is None
            assert locks.live(tmp_path) == [f"process {os.getpid()} on {socket.gethostname()}"]
        assert f"taken over from process {dead.pid} on {socket.gethostname()}" in capsys.readouterr().out

    def test_a_number_that_another_process_has_got_since_is_not_its_holder(self, tmp_path: Path) -> None:
        holder = {"host": socket.gethostname(), "process": os.getpid(), "started": "12"}
        (tmp_path / "a.lock").write_text(json.dumps(holder))
        with Locks(tmp_path) as ours:
            assert ours.acquire("a") is None

    def test_a_lock_that_was_taken_over_just_before_stays_with_its_holder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.lock").write_text(
            json.dumps({"host": socket.gethostname(), "process": 2**22 + 1, "started": "1"})
        )
        with Locks(tmp_path) as ours, Locks(tmp_path) as theirs:
            has_died = locks._has_died

            def and_then_another_is_faster(holder: dict[str, object], path: Path) -> bool:
                died = has_died(holder, path)
                monkeypatch.setattr(locks, "_has_died", has_died)
                assert ours.acquire("a") is None
                return died

            monkeypatch.setattr(locks, "_has_died", and_then_another_is_faster)
            assert theirs.acquire("a") == f"process {os.getpid()} on {socket.gethostname()}"
            assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lock"]

    def test_those_of_dead_processes_go_and_others_stay(self, tmp_path: Path) -> None:
        """A job may end although whoever held its lock was killed: then nobody takes it over."""
        dead = json.dumps({"host": socket.gethostname(), "process": 2**22 + 1, "started": "1"})
        for name in ("a.lock", f"b.lock.{2**22 + 1}.new", f"c.lock.{2**22 + 1}.stale"):
            (tmp_path / "locks" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "locks" / name).write_text("" if name.endswith("new") else dead)
        (tmp_path / "locks/e.lock").write_text('{"host": "elsewhere"}')
        with Locks(tmp_path / "locks") as ours:
            assert ours.acquire("d") is None
            locks.clear(tmp_path / "locks")
            assert sorted(path.name for path in (tmp_path / "locks").iterdir()) == ["d.lock", "e.lock"]
        (tmp_path / "locks/e.lock").write_text(dead)
        locks.clear(tmp_path / "locks")
        assert not (tmp_path / "locks").exists()
        locks.clear(tmp_path / "locks")

    @pytest.mark.parametrize(("age", "taken"), [(10, False), (10 * locks.STALE_AFTER, True)])
    def test_a_lock_of_another_host_is_taken_over_when_nobody_touches_it(
        self, tmp_path: Path, age: float, taken: bool
    ) -> None:
        path = tmp_path / "a.lock"
        path.write_text(json.dumps({"host": "elsewhere", "process": 1, "started": "1"}))
        os.utime(path, (time.time() - age, time.time() - age))
        with Locks(tmp_path) as ours:
            assert (ours.acquire("a") is None) is taken

    def test_two_processes_never_do_the_same_job(self, tmp_path: Path) -> None:
        code = (
            "from pathlib import Path; import sys\n"
            "from experiments.running.jobs import Pool, do_jobs\n"
            "from test_running import job\n"
            "folder = Path(sys.argv[1])\n"
            "print(do_jobs('t', [job(folder, n) for n in range(30)], Pool(0, 1), folder / 'locks').done)\n"
        )
        started = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        done = [int(process.communicate(timeout=60)[0].splitlines()[-1]) for process in started]
        assert sum(done) == 30


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("whose", ["this process", "another process"])
def test_who_waits_for_an_import_ends_when_asked(tmp_path: Path, whose: str) -> None:
    """On a busy machine torch takes tens of seconds, and a queue kills what does not end in time."""
    imported, held = tmp_path / "imported", tmp_path / "held"
    held.write_text("")
    (tmp_path / "long.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(imported)!r}).write_text('begun')\n"
        f"while pathlib.Path({str(held)!r}).exists(): time.sleep(0.05)\n"
    )
    ahead = "from experiments.running import server\nserver.start_ahead(['long'])\n"
    code = (
        "from pathlib import Path\n"
        "from experiments.running import command\n"
        "from experiments.running.jobs import Pool, do_jobs, finish\n"
        "from test_running import job\n"
        "def main():\n"
        "    print('waits', flush=True)\n"
        "    finish('t', do_jobs('t', [job(Path(), 1)], Pool(1, 1, imports=('long',)), Path('locks')))\n"
        "command.run('t', main)\n"
    )
    environment = stage_environment() | {
        "PYTHONPATH": os.pathsep.join(str(path) for path in (tmp_path, ROOT, ROOT / "tests"))
    }
    start = partial(subprocess.Popen, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE)
    try:
        if whose == "another process":
            start([sys.executable, "-c", ahead]).communicate(timeout=60)
            _until(imported.exists)
        waiting = start([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waits\n"
        _until(imported.exists)
        waiting.terminate()
        _, said = waiting.communicate(timeout=10)
    finally:
        held.unlink()
    assert (waiting.returncode, said) == (
        143,
        "t: stopped with 1 job left (job 1); the same command goes on where it stopped\n",
    )


def test_a_request_that_is_cut_off_holds_nobody_up(tmp_path: Path) -> None:
    """Whoever asks for a process may be killed at any moment."""
    code = (
        "import os, select, socket\n"
        "from experiments.running import server, stopping, workers\n"
        "first = workers.ask('os:getppid')\n"
        "address = server._folder() / f'{server._key([])}.sock'\n"
        "for said in (b'', b'123', (1000).to_bytes(8, 'big') + b'{', (2).to_bytes(8, 'big') + b'{{'):\n"
        "    ours, theirs = os.pipe()\n"
        "    with server._connect(address) as half:\n"
        "        if said:\n"
        "            socket.send_fds(half, [said], [theirs] * 3)\n"
        "    os.close(theirs)\n"
        "    assert select.select([ours], [], [], 5)[0] and not os.read(ours, 1), said\n"
        "assert workers.ask('os:getppid') == first\n"
    )
    environment = stage_environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_what_one_process_begins_to_import_the_next_finds(tmp_path: Path) -> None:
    imported = tmp_path / "imported"
    (tmp_path / "slow.py").write_text(
        f"import time\nwith open({str(imported)!r}, 'a') as file: file.write('once ')\ntime.sleep(3)\n"
    )
    environment = stage_environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=60)

    run("from experiments.running import server; server.start_ahead(['slow'])")  # and ends
    _until(imported.exists)
    run("from experiments.running.workers import ask; assert ask('os:getpid', imports=['slow'])")
    assert imported.read_text() == "once "


class TestStopping:
    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)]
    )
    def test_a_signal_is_a_request_with_an_exit_code(self, number: signal.Signals, code: int) -> None:
        stopping.listen()
        try:
            assert not stopping.requested()
            os.kill(os.getpid(), number)
            assert stopping.exit_code() == code
        finally:
            stopping.restore()

    def test_interrupting_twice_by_hand_ends_at_once(self) -> None:
        stopping.listen()
        try:
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            stopping.restore()

    def test_a_process_that_loads_samples_leaves_requests_to_the_one_that_trains(self) -> None:
        """A queue signals all processes of a job; one that died of it would take the checkpoint with it."""
        code = (
            "import os, signal\n"
            "from experiments.running import stopping\n"
            "stopping.leave_to_others()\n"
            "for number in stopping.EXIT_CODES: os.kill(os.getpid(), number)\n"
            "print('alive')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout == "alive\n"


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--shard", "5/4"], "argument --shard: '5/4'; expected I/N with I from 1 to N, such as 3/16"),
            (["--shard", "0/4"], "expected I/N"),
            (["--minutes", "0"], "argument --minutes: '0'; expected a number of minutes above 0"),
            (["--minutes", "soon"], "expected a number of minutes"),
            (["--workers", "-1"], "expected"),
            (["--seeds", "one"], "argument --seeds: 'one'; expected a whole number"),
        ],
    )
    def test_bad_arguments_get_one_line(
        self, workspace: Workspace, arguments: list[str], message: str
    ) -> None:
        done = workspace.stage("train", *arguments)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("stage", ["train", "evaluate", "complexity", "speed", "report"])
    def test_an_unknown_experiment_among_several(self, prepared: Workspace, stage: str) -> None:
        message = prepared.call(stage, "gun-small", "spgnet-smal")
        assert "unknown experiment 'spgnet-smal'; did you mean 'spgnet-small'?" in message

    def test_every_job_is_in_exactly_one_shard(self) -> None:
        found = [job for i in range(1, 5) for job in command.Shard(i, 4).take(range(11))]
        assert sorted(found) == list(range(11))


class TestStorage:
    def test_a_full_disk_is_one_clear_line_and_keeps_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "table.csv"
        path.write_text("old")

        def fill(partial: Path) -> None:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

        with pytest.raises(storage.StorageError, match=r"table.csv: cannot be written \(No space left"):
            storage.write(path, fill)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_is_replaced_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "out"
        with storage.folder(path) as partial:
            (partial / "a").write_text("1")
        with pytest.raises(ZeroDivisionError), storage.folder(path) as partial:  # noqa: PT012
            (partial / "b").write_text("2")
            raise ZeroDivisionError
        assert [p.name for p in path.iterdir()] == ["a"]
        assert list(tmp_path.iterdir()) == [path]

    def test_data_and_names_reach_the_disk_before_and_after_a_file_gets_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or a power cut could leave an empty file under a final name."""
        done: list[str] = []
        fsync, replace = os.fsync, os.replace

        def note_fsync(descriptor: int) -> None:
            done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
            fsync(descriptor)

        def note_replace(source: Path, target: Path) -> None:
            replace(source, target)  # the second of a folder is of the old one, which is not there
            done.append(f"-> {Path(target).name}")

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "replace", note_replace)
        storage.write_text(tmp_path / "a", "1")
        partial = f".a.{platform.node()}.{os.getpid()}.partial"
        assert done == [partial, "-> a", tmp_path.name]
        done.clear()
        with storage.folder(tmp_path / "out") as new:
            (new / "in").mkdir()
            (new / "in/b").write_text("2")
        partial = f".out.{platform.node()}.{os.getpid()}.partial"
        assert done[0:3] in (["in", "b", partial], ["b", "in", partial])
        assert done[3:] == ["-> out", tmp_path.name]

    def test_a_file_that_cannot_be_read_is_not_called_a_full_disk(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), storage.folder(tmp_path / "out"):
            (tmp_path / "elsewhere/summary.csv").read_text()

    def test_whoever_writes_a_file_removes_what_a_killed_process_left_of_it(self, tmp_path: Path) -> None:
        # pid_max is at most 2 ** 22, so this process never was.
        gone, other = f"{platform.node()}.{2**22 + 1}", f"{platform.node()}.{os.getppid()}"
        (tmp_path / f".scores.json.{gone}.partial").write_text("half")
        (tmp_path / f".scores.json.{other}.partial").write_text("still being written")
        (tmp_path / f".scores.json.elsewhere.{2**22 + 1}.partial").write_text("of another machine")
        storage.write_text(tmp_path / "scores.json", "1")
        (tmp_path / f".pictures.{gone}.partial").mkdir()
        (tmp_path / f".pictures.{gone}.old").mkdir()
        with storage.folder(tmp_path / "pictures"):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [
                f".scores.json.{other}.partial",
                f".scores.json.elsewhere.{2**22 + 1}.partial",
                "scores.json",
                "pictures",
            ]
        )

    def test_what_a_killed_process_left_is_removed(self, tmp_path: Path) -> None:
        (tmp_path / ".weights.123.partial").write_text("half")
        (tmp_path / ".out.123.partial").mkdir()
        (tmp_path / "weights").write_text("whole")
        storage.clear_partials(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["weights"]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [(None, "no such file"), ("", "is empty"), ("{", "is not JSON"), ("[" * 100_000, "is not JSON")],
    )
    def test_broken_json_is_one_line_with_its_name_and_what_to_do(
        self, tmp_path: Path, content: str | None, problem: str
    ) -> None:
        path = tmp_path / "scores.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(storage.StorageError) as refused:
            storage.read_json(path, "score it again")
        text = str(refused.value)
        assert text.startswith(f"{path}: {problem}")
        assert text.endswith("; score it again")
        assert "\n" not in text

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (None, "no such file"),
            ("", "is not a table"),
            ("b\n1\n", "has no column 'a'"),
            ('a,"b\n1', "is not a table"),
            ("a" + 10**6 * ",", "has 1000001 columns"),
        ],
        ids=["missing", "empty", "another column", "an open quote", "a million columns"],
    )
    def test_a_broken_table_likewise(self, tmp_path: Path, content: str | None, problem: str) -> None:
        path = tmp_path / "summary.csv"
        if content is not None:
            path.write_text(content)
        with pytest.raises(storage.StorageError, match=f"summary.csv: {problem}.*; make it again"):
            storage.read_csv(path, {"a"}, "make it again")

    def test_json_keeps_a_list_of_numbers_on_a_line(self, tmp_path: Path) -> None:
        value = {"rows": [[1, 2, 3], [4, 5, 6]], "names": ["a, b", "1 2"], "one": 0.5}
        storage.write_json(tmp_path / "a.json", value)
        text = (tmp_path / "a.json").read_text()
        assert json.loads(text) == value
        assert "[1, 2, 3]" in text


def test_a_stage_collects_garbage_though_its_imports_did_not() -> None:
    import gc

    enabled = []
    gc.disable()
    try:
        command.run("stage", lambda: enabled.append(gc.isenabled()))
    finally:
        gc.enable()
    assert enabled == [True]


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import sys\n"
        "from experiments.running.jobs import Pool, do_jobs\n"
        "from test_running import job, wait_for_the_end\n"
        "folder = Path(sys.argv[1])\n"
        "do_jobs('t', [job(folder, 0, wait_for_the_end)], Pool(1, 1), folder / 'locks')\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path,
        env=stage_environment() | {"PYTHONPATH": os.environ["PYTHONPATH"]},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "0.started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(workers_in(tmp_path)) == 2  # the parent and its worker
    parent.kill()
    parent.wait()
    wait_until_gone(tmp_path)


@pytest.mark.parametrize(
    ("information", "expected"),
    [
        (
            "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nmodel\t\t: 1\n",
            "AMD EPYC (family 25, model 17)",
        ),
        (
            "cpu family\t: 6\nmodel\t\t: 106\nmodel name\t: Intel(R) Xeon(R) Platinum 8358 CPU\n",
            "Intel(R) Xeon(R) Platinum 8358 CPU",
        ),
        ("model name\t: A processor\n", "A processor"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", platform.processor() or platform.machine()),
    ],
)
def test_a_processor_whose_name_has_no_number_is_told_apart(
    tmp_path: Path, information: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(information)
    assert cpu_name(tmp_path / "cpuinfo") == expected


def test_a_processor_that_the_system_does_not_describe_has_a_name(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "missing") == (platform.processor() or platform.machine())


def test_who_stops_a_command_is_told_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise stopping.Stopped("after 1 of 5 images")

    with pytest.raises(SystemExit) as stopped:
        command.run("predict", main, "the same command with --overwrite begins again")
    assert stopped.value.code == stopping.EXIT_CODES[signal.SIGTERM]
    said = capsys.readouterr().err
    assert said == "predict: stopped after 1 of 5 images; the same command with --overwrite begins again\n"


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    code = "from experiments.running import command; command.run('tables', lambda: print('x' * 10**6))"
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
        env=stage_environment() | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert writer.stdout is not None
    assert writer.stderr is not None
    assert writer.stdout.read(1) == b"x"
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait() == 1


def test_a_file_that_must_not_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(storage.StorageError, match=r"old.svg: cannot be removed \(Permission denied\)"):
        storage.remove(tmp_path / "old.svg")
