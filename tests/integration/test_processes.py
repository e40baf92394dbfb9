"""Test several processes on this machine as if on several hosts, each in its own folder."""

import re
import shutil
import signal
import socket
import time

import pandas as pd
import pytest

from planet_jax.runtime import distributed
from tests.support import ROOT, small_config, start_program, tables, wait_for_rows

RELATIVE = {"workdir": "run", "data.cache": "cache"}  # in each host's own folder


@pytest.fixture
def start_hosts(tmp_path):
    """Start a command in n processes; their output goes to tmp_path/out0, err0, ..."""
    started = []

    def start(n, command, *flags, devices=1, env=(), **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = small_config(tmp_path, **RELATIVE | options)
        for i in range(n):
            host = tmp_path / f"host{i}"
            host.mkdir(exist_ok=True)
            hosts = [f"coordinator=127.0.0.1:{port}", f"count={n}", f"index={i}"] if n > 1 else []
            place = [f"--config.hosts.{flag}" for flag in hosts]
            more = [flag.format(i=i) for flag in flags]
            with open(tmp_path / f"out{i}", "w") as out, open(tmp_path / f"err{i}", "w") as err:
                process = start_program(
                    command, config, *more, *place,
                    devices=devices, cwd=host, stdout=out, stderr=err, env=dict(env),
                )  # fmt: skip
            started.append(process)
        return started[-n:]

    yield start
    for process in started:
        process.kill()
        process.wait()


def statuses(processes, seconds=600):
    deadline = time.monotonic() + seconds
    return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in processes]


def last_message(err):
    """Return the program's last line; JAX's own log may follow when the other process ends."""
    return [line for line in err.read_text().splitlines() if line.startswith("planet_jax:")][-1]


def test_single_process_needs_no_others():
    assert distributed.is_main_process()
    assert distributed.process_count() == 1
    assert distributed.on_main(lambda: (1, "a"))() == (1, "a")
    assert not distributed.stop_requested()
    distributed.require_same({"any": 1})


def test_processes_with_different_options_are_refused(start_hosts, tmp_path):
    processes = start_hosts(2, "train", "--config.seed={i}")
    assert statuses(processes) == [2, 2]
    for i in range(2):
        assert last_message(tmp_path / f"err{i}").endswith(
            "processes 0 and 1 differ in config.seed; start all processes with the same"
        )
    assert not (tmp_path / "host0" / "run").exists()


@pytest.mark.parametrize("late", [False, True])
def test_input_that_the_main_process_refuses_ends_all(start_hosts, tmp_path, late):
    """JAX's coordinator is in process 0; a process that ends 2 s later is not aborted."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\nend = os._exit\n"
        "os._exit = lambda s: (time.sleep(2 * ('--config.hosts.index=1' in sys.argv)), end(s))\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"} if late else {}
    processes = start_hosts(2, "train", init_from="missing", env=env)
    assert statuses(processes) == [2, 2]
    for i in range(2):
        assert "no latest checkpoint" in last_message(tmp_path / f"err{i}")


def test_two_processes_train_as_one_with_two_devices(start_hosts, tmp_path):
    """The tables are equal bit for bit, and only the main process prints.

    SIGTERM to one process makes both save at the same step.
    """
    assert statuses(start_hosts(1, "train", devices=2, workdir="alone")) == [0]
    run = tmp_path / "host0" / "run"
    processes = start_hosts(2, "train")
    wait_for_rows(run, 2, *processes)
    processes[1].send_signal(signal.SIGTERM)
    assert statuses(processes) == [143, 143]
    assert len(pd.read_csv(run / "steps.csv")) < 10
    assert "saved; repeat the command to continue" in (tmp_path / "err0").read_text()
    assert statuses(start_hosts(2, "train")) == [0, 0]
    assert "epoch" in (tmp_path / "out0").read_text()
    assert (tmp_path / "out1").read_text() == ""
    assert not (tmp_path / "host1" / "run").exists()
    for together, single in zip(tables(run), tables(run.parent / "alone"), strict=True):
        pd.testing.assert_frame_equal(together, single, check_exact=True)
    assert statuses(start_hosts(2, "evaluate", checkpoint="latest")) == [0, 0]
    scores = pd.read_json(run / "metrics.json", typ="series")
    assert scores["valid_loss"] == pytest.approx(tables(run)[1]["valid_loss"].iloc[-1])
    images = shutil.copytree(tmp_path / "root" / "train-jpg", tmp_path / "images")
    names = sorted(path.stem for path in images.iterdir())
    cut = [names[0], names[1], names[-1]]  # of both processes' shares
    for name in cut:
        (images / f"{name}.jpg").write_bytes(b"no image")
    assert statuses(start_hosts(2, "predict", **{"predict.folder": str(images)})) == [0, 0]
    assert pd.read_csv(run / "skipped.csv")["image_name"].tolist() == cut
    assert len(pd.read_csv(run / "predictions.csv")) == len(names) - 3


@pytest.mark.slow
def test_four_processes_train_as_one_with_four_devices(start_hosts, tmp_path):
    """The losses differ only because gloo and XLA sum in a different order.

    A small rate and enough values for BatchNorm keep the difference small: at most 9e-6 of a loss
    was measured.
    """
    calm = {"data.size": 64, "data.batch_size": 8, "optim.lr": (1e-5,)}
    assert statuses(start_hosts(1, "train", devices=4, workdir="alone", **calm)) == [0]
    assert statuses(start_hosts(4, "train", **calm)) == [0] * 4
    run = tmp_path / "host0" / "run"
    for together, single in zip(tables(run), tables(run.parent / "alone"), strict=True):
        pd.testing.assert_frame_equal(together, single, rtol=1e-4)


@pytest.mark.parametrize("lost", [0, 1])
def test_lost_process_ends_the_other_within_the_timeout(start_hosts, tmp_path, lost):
    """JAX aborts the other process (SIGABRT, 134 in a shell), whose log names the lost task."""
    run = tmp_path / "host0" / "run"
    processes = start_hosts(2, "train", **{"train.save_every": 2})
    wait_for_rows(run, 2, *processes)
    processes[lost].kill()
    killed = time.monotonic()
    assert statuses([processes[1 - lost]], 120) == [-signal.SIGABRT]
    assert time.monotonic() - killed < distributed.HEARTBEAT_TIMEOUT + 30  # plus one step
    log = (tmp_path / f"err{1 - lost}").read_text()
    named = "leader task was preempted" if lost == 0 else r"stopped sending heartbeats\):\s+1\b"
    assert re.search(named, log)
    assert "Traceback" not in log
    assert "Fatal Python error" not in log  # from faulthandler's dump, which can crash
    assert statuses(start_hosts(2, "train", **{"train.save_every": 2})) == [0, 0]


def test_program_listens_on_no_port_of_its_own():
    """JAX's coordinator and collectives open ports; the code of the package opens none."""
    for file in (ROOT / "planet_jax").rglob("*.py"):
        text = file.read_text()
        for word in ("import socket", "socketserver", "http.server", ".bind(", ".listen("):
            assert word not in text, f"{file}: {word}"
