"""Several processes on this machine, as several hosts would be."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import ROOT
from test_loop import small_config

from planet_jax.config import flatten, get_config, validate
from planet_jax.runtime import distributed
from planet_jax.runtime.errors import BadInput


def start(command, n, env, output):
    """The same command in n processes, each told its place by {n}, {i} and {port}.

    Each has a folder of its own to work in, as hosts have that share no disk.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for i in range(n):
        with open(output / f"out{i}", "w") as out, open(output / f"err{i}", "w") as err:
            filled = [part.format(n=n, i=i, port=port) for part in command]
            (home := output / f"host{i}").mkdir(exist_ok=True)
            processes.append(
                subprocess.Popen(filled, cwd=home, env=os.environ | env, stdout=out, stderr=err)
            )
    return processes


def statuses(processes, seconds):
    """Exit statuses; a process that does not end in time fails the test."""
    deadline = time.monotonic() + seconds
    try:
        return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in processes]
    finally:
        kill(processes)


def kill(processes):
    for process in processes:
        process.kill()
        process.wait()


def last_line(path):
    return path.read_text().splitlines()[-1]


# The watchers alone: children that join when all are there and then do as their argument says.
CHILD = """
import glob, os, signal, sys, time
from planet_jax.runtime import watch
watch.PING, watch.LOST_AFTER = 0.2, 5.0
i, n, port, deed = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
found = watch.child_line()
if found is None:
    if i == 0:  # its port is what the service of jax tells the others otherwise
        create = watch.socket.create_server
        watch.socket.create_server = lambda address, **more: create(("", port), **more)
    sys.exit(watch.supervise())
line, _ = found
open("here", "w").close()
while len(glob.glob("../*/here")) < n:  # as jax.distributed waits for all
    time.sleep(0.05)
stranger = watch.socket.create_connection(("127.0.0.1", port))
stranger.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
line.tell(joined=["127.0.0.1", port, i, n])
time.sleep(1)
who, _, how = deed.partition(":")
how, _, others = how.partition(" ")
if who == str(i):
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    elif how.startswith("watcher"):
        os.kill(os.getppid(), getattr(signal, how.removeprefix("watcher")))
    elif how == "Ctrl-C":
        os._exit(130)
    else:
        line.tell(ended=[2, "ended: no", True])
    time.sleep(60)
elif who != "none":
    time.sleep(0.3)
    if others:
        os.abort()
    time.sleep(60)
"""


ENDS = {
    "SIGKILL": (1, "was lost: ended by SIGKILL"),
    "SIGSTOP": (1, "was lost: no sign of life"),
    "watcherSIGKILL": (1, "was lost: its connection broke"),
    "watcherSIGSTOP": (1, "was lost: no sign of life"),
    "refuses": (2, "ended: no"),
    "SIGTERM": (143, "was stopped by SIGTERM"),
    "Ctrl-C": (130, "was stopped by Ctrl-C"),
}


def children(folder, deed):
    """Three watched children; `python -c` keeps its text, so that the watcher can start it too."""
    folder.mkdir()
    command = [sys.executable, "-c", CHILD, "{i}", "{n}", "{port}", deed]
    return start(command, 3, {"PYTHONPATH": str(ROOT)}, folder)


@pytest.mark.parametrize("lost", [0, 2])
def test_the_others_end_and_say_which_was_lost(tmp_path, lost):
    runs = {how: children(tmp_path / how, f"{lost}:{how}") for how in ENDS}
    rest = [i for i in range(3) if i != lost]
    ends = {how: statuses([run[i] for i in rest], 60) for how, run in runs.items()}
    for how, run in runs.items():
        kill(run)
        status, says = ENDS[how]
        lines = [last_line(tmp_path / how / f"err{i}") for i in rest]
        assert ends[how] == [status] * 2, (how, lines)
        for line in lines:
            assert re.search(rf"process {lost} \(.*\) {says}", line), (how, line)


def test_who_aborts_because_another_is_lost_is_not_blamed(tmp_path):
    """As jax's runtime does, sooner than the lost one's silence has lasted long enough."""
    processes = children(tmp_path / "run", "2:watcherSIGSTOP others abort")
    assert statuses(processes[:2], 30) == [1, 1]
    kill(processes[2:])
    for i in (0, 1):
        assert "process 2" in last_line(tmp_path / "run" / f"err{i}")


def test_all_end_in_order(tmp_path):
    assert statuses(children(tmp_path / "run", "none"), 30) == [0, 0, 0]
    assert [(tmp_path / "run" / f"err{i}").read_text() for i in range(3)] == [""] * 3


def test_a_process_alone_needs_nobody():
    assert distributed.is_main_process()
    assert distributed.run_on_main(lambda: (1, "a")) == (1, "a")
    assert not distributed.stop_requested()
    distributed.require_same({"any": 1})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": 2}, r"need config\.hosts\.coordinator"),
        ({"coordinator": "auto", "index": 1}, r"need config\.hosts\.coordinator"),
        ({"coordinator": "vm", "count": 2}, "must be ADDRESS:PORT"),
        ({"coordinator": "vm:0", "count": 2}, "must be ADDRESS:PORT"),
        ({"coordinator": "vm:8476", "count": 2, "index": 2}, "index = 2 must be below"),
        ({"coordinator": "vm:8476"}, "index = 0 must be below"),
    ],
)
def test_the_knobs_of_hosts_make_sense_together(options, says):
    config = get_config()
    config.hosts.update(options)
    with pytest.raises(BadInput, match=says):
        validate(config)


# The program itself.
def program(folder, n, command, *more, devices=1, **options):
    """Starts `command` in n processes of so many devices each, as the only run or as hosts.

    The network is the tiny one, to save time.
    """
    own = {"workdir": "run", "data.cache": "cache"}
    flat = flatten(small_config(folder, **own | options))
    file = folder / "small.py"
    file.write_text(
        "from planet_jax.config import get_config as base\n"
        "def get_config():\n"
        "    config = base()\n"
        f"    config.update_from_flattened_dict({flat!r})\n"
        "    return config\n"
    )
    flags = [] if n == 1 else ["coordinator=127.0.0.1:{port}", "count={n}", "index={i}"]
    env = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    python = [sys.executable, "-m", "planet_jax.main", command, "--config", str(file), *more]
    return start([*python, *(f"--config.hosts.{flag}" for flag in flags)], n, env, folder)


def after_rows(run, rows, processes):
    """Waits until steps.csv has so many rows."""
    table = run / "steps.csv"
    while not table.exists() or len(table.read_text().splitlines()) <= rows:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def figures(run):
    steps, history = pd.read_csv(run / "steps.csv"), pd.read_csv(run / "history.csv")
    return steps.iloc[:, :7], history.drop(columns="time")


@pytest.mark.slow
def test_processes_that_were_told_otherwise_are_refused(tmp_path):
    processes = program(tmp_path, 2, "train", "--config.seed={i}")
    assert statuses(processes, 120) == [2, 2]
    for i in range(2):
        line = last_line(tmp_path / f"err{i}")
        assert line.endswith("process 1 and process 0 differ in config.seed; give all the same")
    assert not (tmp_path / "host0" / "run").exists()


@pytest.mark.slow
def test_two_processes_train_as_one_with_two_devices(tmp_path):
    """To the bit. They stop at SIGTERM to one, go on, and score; the first alone speaks."""
    assert statuses(program(tmp_path, 1, "train", devices=2, workdir="alone"), 600) == [0]
    run = tmp_path / "host0" / "run"
    processes = program(tmp_path, 2, "train")
    after_rows(run, 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert statuses(processes, 600) == [143, 143]
    assert len(pd.read_csv(run / "steps.csv")) < 10
    assert "saved; the same command goes on" in last_line(tmp_path / "err0")
    assert statuses(program(tmp_path, 2, "train"), 600) == [0, 0]
    assert "epoch" in (tmp_path / "out0").read_text()
    assert (tmp_path / "out1").read_text() == ""
    assert not (tmp_path / "host1" / "run").exists()
    for together, single in zip(figures(run), figures(run.parent / "alone"), strict=True):
        pd.testing.assert_frame_equal(together, single, check_exact=True)
    assert statuses(program(tmp_path, 2, "evaluate", checkpoint="latest"), 600) == [0, 0]
    scores = pd.read_json(run / "metrics.json", typ="series")
    assert scores["valid_loss"] == pytest.approx(figures(run)[1]["valid_loss"].iloc[-1])


@pytest.mark.slow
def test_four_processes_train_as_one_with_four_devices(tmp_path):
    """But for the order in which gloo and XLA add.

    At a small rate, and with values enough for BatchNorm, little multiplies that: measured were
    9e-6 of a loss at most.
    """
    calm = {"data.size": 64, "data.batch_size": 8, "optim.lr": (1e-5,)}
    assert statuses(program(tmp_path, 1, "train", devices=4, workdir="alone", **calm), 600) == [0]
    assert statuses(program(tmp_path, 4, "train", **calm), 600) == [0] * 4
    run = tmp_path / "host0" / "run"
    for together, single in zip(figures(run), figures(run.parent / "alone"), strict=True):
        pd.testing.assert_frame_equal(together, single, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_soon(tmp_path, lost):
    processes = program(tmp_path, 2, "train")
    after_rows(tmp_path / "host0" / "run", 2, processes)
    processes[lost].kill()
    assert statuses([processes[1 - lost]], 60) == [1]
    processes[lost].wait()
    assert f"process {lost} (" in last_line(tmp_path / f"err{1 - lost}")
