"""A process that has imported torch and the models, and forks worker processes off itself.

Importing takes five seconds, a training of the default run three. So one process imports, computes nothing,
and every worker is a copy of it that starts in milliseconds. It outlives the stage that started it by
``LINGER`` seconds: then the next stage of the pipeline, or the next command of a person, finds it ready.

It is found by a digest of the code, the interpreter and the environment, in a folder that only this user
can open: whoever changes a line of code gets another one.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from experiments.running import digests, stopping
from experiments.running.stopping import Stopped
from experiments.running.storage import StorageError

COMPUTING = (
    "experiments.training.loop",
    "experiments.scoring.evaluation",
    "experiments.measuring.counting",
    "experiments.measuring.timing",
)
"""What workers that compute need; the stages share one server."""
DRAWING = ("experiments.reporting.figures",)
"""What workers that draw need."""
LINGER = 20.0
"""Seconds without work and without workers after which a server ends."""

_PREFIXES = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH",
             "TIMM_", "HF_", "TRANSFORMERS_", "PYTHON", "LD_", "MPL")  # fmt: skip
"""Beginnings of the environment variables that an import may read."""
_JOB = ("SLURM_JOB_ID", "SLURM_STEP_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Environment variables that name a job of a queue: its processes end with it, a server among them."""
_STARTS_WITHIN = 120.0
_SPEAKS_WITHIN = 10.0
"""Seconds that a server waits for the rest of a request, while nobody else gets an answer."""
_POLL = 0.02


class Forked:
    """A process that the server forked for this one.

    Args:
        imports: modules that it has imported.
        entry: the function that it runs, as ``module:name``, with its end of the connection and the
            arguments.
        arguments: of JSON types.

    Raises:
        Stopped: this process was asked to stop while it waited for the server to import them.
        StorageError: the server does not start or does not answer.
    """

    def __init__(self, imports: Sequence[str], entry: str, arguments: Sequence[object]):
        ours, theirs = socket.socketpair()
        request: dict[str, object] = {
            "entry": entry,
            "arguments": list(arguments),
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "path": _search_path(),
        }
        with theirs:
            self._server, self.pid = _ask(list(imports), request, [theirs.fileno(), 1, 2])
        self.connection = Connection(ours.detach())
        self._status: int | None = None

    def exit_status(self, timeout: float) -> int | None:
        """How the process ended, as ``os.waitstatus_to_exitcode`` has it; ``None`` if it has not."""
        if self._status is None:
            ready, _, _ = select.select([self._server], [], [], timeout)
            if ready:
                try:
                    self._status = int(self._server.recv(32))
                except (OSError, ValueError):  # the server has died, and nobody says any more how this ended
                    self._status = None if _runs(self.pid) else -signal.SIGKILL
        return self._status

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.exit_status(0) is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Forgets it; what it does ends when it finds its connection closed."""
        self.connection.close()
        self._server.close()


def start_ahead(imports: Sequence[str]) -> None:
    """Has a server begin to import modules that this process, or the next one, will need.

    Nothing is said if it does not start: whoever asks it for a process will hear of that.
    """
    with suppress(StorageError, OSError):
        address = _folder() / f"{_key(list(imports))}.sock"
        with open(address.with_suffix(".lock"), "w") as lock:
            if not _lock(lock):
                return  # another process starts it
            found = _connect(address)
            if found is None:
                _launch(address, list(imports), lock)
            else:
                found.close()


def _ask(imports: list[str], request: dict[str, object], files: list[int]) -> tuple[socket.socket, int]:
    """A connection to a server, and the process that it forked."""
    address = _folder() / f"{_key(imports)}.sock"
    message = json.dumps(request).encode()
    for _ in range(5):  # a server that is about to end may take a request and not answer it
        server = _connect(address) or _start(address, imports)
        if server is None:
            continue
        try:
            socket.send_fds(server, [len(message).to_bytes(8, "big")], files)
            server.sendall(message)
            while not select.select([server], [], [], _POLL)[0]:
                _look_whether_to_stop()
            answer = server.recv(8)
        except OSError:
            answer = b""
        if len(answer) == 8:
            return server, int.from_bytes(answer, "big")
        server.close()
    raise StorageError(f"{address}: the process that forks workers does not answer; remove the file")


def _connect(address: Path) -> socket.socket | None:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.connect(str(address))
    except OSError:
        server.close()
        return None
    return server


def _start(address: Path, imports: list[str]) -> socket.socket | None:
    """Starts a server, or waits for the one that another process is starting; ``None`` if it was killed."""
    with open(address.with_suffix(".lock"), "w") as lock:
        deadline = time.monotonic() + _STARTS_WITHIN
        while not _lock(lock):
            _look_whether_to_stop()
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{lock.name}: another process has been starting the one that forks workers for "
                    f"{_STARTS_WITHIN:.0f} s; end that, or remove the file"
                )
            time.sleep(_POLL)
        found = _connect(address)
        if found is not None:
            return found
        process = _launch(address, imports, lock)
        deadline = time.monotonic() + _STARTS_WITHIN
        while time.monotonic() < deadline and process.poll() is None:
            found = _connect(address)
            if found is not None:
                return found
            _look_whether_to_stop()  # the server imports on: the next command finds it ready
            time.sleep(_POLL)
        if (process.poll() or 0) < 0:
            return None
        process.kill()
        lines = address.with_suffix(".log").read_text(errors="replace").strip().splitlines()
        raise StorageError(
            f"{address.with_suffix('.log')}: the process that forks workers did not start "
            f"({lines[-1] if lines else 'it said nothing'})"
        )


def _runs(pid: int) -> bool:
    """Whether a process runs that somebody else started."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _lock(file: IO[str]) -> bool:
    """Locks a file, unless another process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _look_whether_to_stop() -> None:
    if stopping.requested():
        raise Stopped("while its processes started")


def _launch(address: Path, imports: list[str], lock: IO[str]) -> subprocess.Popen[bytes]:
    """Starts a server. The lock is its own too, until it listens: nobody else starts one meanwhile."""
    address.unlink(missing_ok=True)
    with open(address.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.running.server", str(address), *imports],
            cwd=digests.ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(_search_path())},
            stdin=lock,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a signal from the keyboard is for the stage
        )


def _search_path() -> list[str]:
    """Where this process finds modules; an empty entry is the folder that it runs in."""
    return [path or os.getcwd() for path in sys.path]


def _folder() -> Path:
    """A folder that only this user can open."""
    folder = Path(tempfile.gettempdir()) / f"scene-parsing-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise StorageError(f"{folder}: belongs to another user, or others can open it; remove it")
    return folder


def _key(imports: list[str]) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name.startswith(_PREFIXES) or name in _JOB
    }
    code = digests.of_code(folders=("models", "experiments"))
    described = [imports, sys.executable, str(digests.ROOT), code, environment, sys.path]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:24]


def main() -> None:
    """Serves until nobody has asked for anything for a while."""
    address, *imports = sys.argv[1:]
    # A queue signals every process of a job; for stages and workers it is a request, of which a server needs
    # to know nothing.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for name in imports:
        import_module(name)
    gc.freeze()
    os.chdir("/")  # whoever removes or unmounts the folder need not wait for the server to end
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(64)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)  # which was the lock
    children: dict[int, socket.socket] = {}
    last = time.monotonic()
    while children or time.monotonic() - last < LINGER:
        ready, _, _ = select.select([listener], [], [], 0.1)
        if ready:
            client, _ = listener.accept()
            pid = _fork(client, [listener, *children.values()])
            if pid is not None:
                children[pid] = client
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            client = children.pop(pid)
            with suppress(OSError):
                client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            client.close()
        if ready or children:
            last = time.monotonic()
    os.unlink(address)
    os._exit(0)


def _fork(client: socket.socket, others: Sequence[socket.socket]) -> int | None:
    """Forks a process for a client; its number, or ``None`` if the client said nothing sensible."""
    files: list[int] = []
    try:
        client.settimeout(_SPEAKS_WITHIN)
        length, files, _, _ = socket.recv_fds(client, 8, 3)
        message = b""
        while len(message) < int.from_bytes(length, "big"):
            said = client.recv(1 << 16)
            if not said:
                raise EOFError
            message += said
        request = json.loads(message)
        pid = os.fork()
    except (OSError, EOFError, ValueError):
        # Whoever reads what the client's process wrote to would wait for an end as long as these are open.
        for descriptor in files:
            os.close(descriptor)
        client.close()
        return None
    if pid:
        for descriptor in files:
            os.close(descriptor)
        with suppress(OSError):
            client.sendall(pid.to_bytes(8, "big"))
        return pid
    code = 1
    try:
        for other in (client, *others):
            other.close()
        connection, out, error = files
        os.dup2(out, 1)
        os.dup2(error, 2)
        os.close(out)
        os.close(error)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[:] = request["path"]
        gc.enable()
        module, name = request["entry"].split(":")
        getattr(import_module(module), name)(Connection(connection), *request["arguments"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Without looking through all that the imports made, which takes most of a second.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    gc.disable()  # imports make some hundred thousand objects that stay
    main()
