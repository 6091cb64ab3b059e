"""A Python process that has imported this project already, for tests of its commands.

Importing torch, transformers, Lightning and W&B takes longer than a tiny run. A server imports them once and forks for
each command; its client stands where ``sys.executable`` would: it has the same standard streams, working folder,
environment and exit code as the command, and passes signals on. Commands whose start is the subject of a test, and
processes that read the id of their parent, are started with ``sys.executable``. A second server stands for a Python
where this package is not installed.
"""

import atexit
import functools
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import weakref

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STREAMS = (0, 1, 2)
FORWARDED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Imported by a run when it gets there.
PRELOADED = (
    "train",
    "gating.run.ending",
    "gating.run.execute",
    "gating.run.sweep.choice",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
)
# The name of the socket of the server without the package, and what each folder of a compact model needs there.
ALONE = "without-package"
OF_OTHERS = (
    "torch",
    "transformers.modeling_layers",
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
)


def warm_python(*, with_package: bool = True) -> list[str]:
    """Start the server of this process, once; return the command that stands for ``[sys.executable]``.

    Without the package, a process has a cache of remote code of its own. Windows does not fork, and macOS does not wait
    for a process by a file.
    """
    return _start(with_package) if sys.platform == "linux" else [sys.executable]


@functools.cache
def _start(with_package: bool) -> list[str]:
    import shutil
    import subprocess
    import tempfile

    # Not a TemporaryDirectory: Python 3.13 forgets exit handlers in a fork, and the folder would go with its last name.
    folder = tempfile.mkdtemp(prefix="head-gating-warm-")
    address = os.path.join(folder, "socket" if with_package else ALONE)
    environment = dict(os.environ)
    if not with_package:
        for name in ("PYTHONPATH", "HF_MODULES_CACHE"):
            environment.pop(name, None)
        # Memory that nobody has written to is filled with 3.4e38, lest it have the right values from a model before.
        environment |= {"HF_HOME": folder, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MALLOC_PERTURB_": "128"}
    server = subprocess.Popen(
        [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.communicate)  # The server ends with its standard input.
    return [sys.executable, "-I", "-S", __file__, address]


def serve(address: str) -> None:
    """Fork for each command of a client; return in the new process, as the command, with its arguments in place."""
    is_alone = os.path.basename(address) == ALONE
    sys.path[0] = os.path.dirname(address) if is_alone else ROOT  # in place of the folder of this file
    if is_alone:
        sys.modules["gating"] = None  # type: ignore[assignment]  # as where it is not installed
    for name in OF_OTHERS if is_alone else PRELOADED:
        __import__(name)
    _prepare(is_alone)
    gc.freeze()
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for the processes that wait for commands.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                return _wait_for_command(connection)
            connection.close()
    os._exit(0)


def _prepare(is_alone: bool) -> None:
    """Make the table that transformers makes with the first model, and take the shortcuts of tests."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("bert")
    if not is_alone:
        from tests.support.quick_runs import DRAWING, TIMING

        for shortcut in DRAWING + TIMING:
            setattr(*shortcut)


def _wait_for_command(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, *_ = socket.recv_fds(connection, 8, len(STREAMS))
    with connection.makefile("rb") as reader:
        command = json.loads(reader.read(int(size)))
    pid = os.fork()
    if pid == 0:
        connection.close()
        return _become(command, dict(zip(command["streams"], streams, strict=True)))
    for descriptor in streams:
        os.close(descriptor)
    connection.sendall(pid.to_bytes(8, "big"))
    process = os.pidfd_open(pid)
    is_client_gone = connection in select.select([process, connection], [], [])[0]
    if is_client_gone:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if not is_client_gone:
        connection.sendall(status.to_bytes(8, "big"))
    os._exit(0)


def _become(command: dict, streams: dict[int, int]) -> None:
    for number in STREAMS:
        if number in streams:
            os.dup2(streams[number], number)
        else:
            os.close(number)
    for descriptor in streams.values():
        os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode, errors = ("r", "strict") if number == 0 else ("w", "strict" if number == 1 else "backslashreplace")
        buffering = 1 if number == 2 else -1
        stream = open(number, mode, buffering, "utf-8", errors) if number in streams else None  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # The server's exit handlers remove temporary folders that its other commands use as well.
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]
    random.seed()
    for number in FORWARDED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    sys.argv = command["arguments"]
    if sys.modules["gating"] is not None:
        sys.path[:1] = [ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def request(address: str, arguments: list[str]) -> int:
    """Run a script, or ``-m`` and a module, in a fork of the server; return its status as ``os.waitpid`` does."""
    streams = [number for number in STREAMS if _is_open(number)]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    command = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "streams": streams,
    }
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    text = json.dumps(command).encode()
    socket.send_fds(connection, [f"{len(text):8}".encode()], streams)
    connection.sendall(text)
    pid = int.from_bytes(connection.recv(8), "big")
    for number in FORWARDED:
        signal.signal(number, lambda received, _: os.kill(pid, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    for number in streams:
        os.close(number)  # Or those that read the output would wait for this process, too.
    return int.from_bytes(connection.recv(8), "big")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def run_to_the_end() -> int:
    """Run the script or module in ``sys.argv`` and the exit handlers; return the exit code.

    Python would also free every module, which takes longer than the command.
    """
    code: object = None
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(sys.argv[0])
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError:
        code = 120
    return int(code or 0)


def main() -> None:
    """Serve at an address, or pass a command to the server there."""
    _, address, *arguments = sys.argv
    if not arguments:
        serve(address)
        os._exit(run_to_the_end())
    status = request(address, arguments)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
