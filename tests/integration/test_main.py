"""Test the program in a separate process, as users start it."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from planet_jax.backend import FILES, has_device
from tests.support import ROOT, assert_refusal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "--config=configs/smoke.py"], "trian is not a command; did you mean train"),
        (
            ["--config=configs/smoke.py", "--config.optim.lrr=3"],
            "config.optim.lrr is not an option; did you mean optim.lr?",
        ),
        (["--config=configs/smoke.py", "--config.model.weights=a.safetensors"], "no such file"),
    ],
)
def test_mistake_ends_with_one_line_and_status_2(arguments, message):
    ended = subprocess.run(
        [sys.executable, "-m", "planet_jax.main", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=os.environ | {"JAX_PLATFORMS": ""},  # as on a user's machine
    )  # fmt: skip
    assert_refusal(ended.returncode, ended.stdout, ended.stderr, message)


def start(*arguments, cwd=ROOT, shell="", **environment):
    command = [sys.executable, "-m", "planet_jax.main", *arguments]
    if shell:
        command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False,
        env=os.environ | {"JAX_PLATFORMS": "", "PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_platform_that_is_not_here_is_refused_before_any_data_work(platform, tmp_path):
    if platform in FILES and has_device(*FILES[platform]):
        pytest.skip("this machine has an accelerator")
    ended = start(
        "train", f"--config={ROOT}/configs/smoke.py", cwd=tmp_path, JAX_PLATFORMS=platform
    )
    # It is one line, even if the plugins are installed.
    assert_refusal(ended.returncode, ended.stdout, ended.stderr, f"JAX_PLATFORMS={platform}: ")
    assert not list(tmp_path.iterdir())


def test_a_closed_pipe_or_stream_ends_quietly():
    for shell in ("| head -1", ">&-", "2>&-"):
        options = ("--config=configs/smoke.py", "--config.model.name=tiny")
        ended = start("summary", *options, shell=shell)
        assert ended.returncode == 0
        assert ended.stderr == ""


@pytest.mark.parametrize("environment", [{"HOME": "/dev/null"}, {"XDG_CACHE_HOME": "/dev/null/x"}])
def test_a_home_that_cannot_be_written_is_not_needed(environment):
    ended = start("summary", "--config=configs/smoke.py", "--config.model.name=tiny", **environment)
    assert ended.returncode == 0, ended.stderr
    assert "Total parameters" in ended.stdout


@pytest.fixture
def refusing_proxy():
    """The URL of a proxy that asks for a password."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            self.send_response(407)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "refusing"])
def test_the_hub_behind_a_proxy_is_one_line(refusing_proxy, proxy, tmp_path):
    proxy = refusing_proxy if proxy == "refusing" else proxy
    ended = start(
        "train", f"--config={ROOT}/configs/stage1.py", "--config.data.source=folder",
        cwd=tmp_path, ALL_PROXY=proxy, HTTPS_PROXY=proxy,
        HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="0",
    )  # fmt: skip
    assert_refusal(
        ended.returncode,
        ended.stdout,
        ended.stderr,
        "hub:timm/resnet50.tv_in1k cannot be fetched: ",
    )
