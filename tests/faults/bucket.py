"""Lose the machine of a chain in a bucket, continue on another, and compare the chains."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.bucket_server import serve
from tests.faults.chain import STAGES
from tests.faults.outcome import Outcome, Rng
from tests.faults.runs import COMPILED, Home, end
from tests.support import ROOT

PER_CHAIN = 5
MOST_WRITES = 300  # about those of one stage
KINDS = ("s3", "gs")
EXPIRE = (  # the lease of a process that was killed: the next machine would wait for its end
    "import sys; from planet_jax.storage.bucket import Bucket; "
    "buckets = [Bucket(f'{sys.argv[1]}/{stage}') for stage in sys.argv[2:]]; "
    "[b.write(name, b'{\"released\": true}') for b in buckets for name in b.list('.lease')]"
)


def lose_machines(home: Home, rng: Rng, number: int) -> Outcome:
    """Kill a chain five times; each time, delete all that its machine had on its disk.

    The store is S3 or GCS in turn, and slow in a third of the tries. Kills are in turn at a random
    moment and in the middle of an upload.
    """
    notes: list[str] = []
    kind = KINDS[number % 2]
    url = f"{kind}://bucket/chain{number}"
    cache = home.folder.parent / COMPILED / "planet_jax" / kind
    with serve(kind) as (proxy, environment):
        environment |= {"FAULTS_RUNS": url}
        for i in range(PER_CHAIN):
            proxy.fault = "slow" if rng.random() < 1 / 3 else ""
            if i % 2:
                proxy.writes_until_fault = int(rng.integers(1, MOST_WRITES))
            deadline = time.monotonic() + rng.uniform(2, home.seconds)
            process = home.start(**environment)
            while process.poll() is None:
                if proxy.writes_until_fault < 0 if i % 2 else time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            process.kill()
            output, _ = process.communicate()
            if "Traceback" in output or process.returncode not in (0, -9):
                return Outcome(f"status {process.returncode}: {output[-2000:]}", PER_CHAIN)
            notes.append(f"in an upload to {kind}" if i % 2 else f"at any moment, {kind}")
            print(f"  {notes[-1]}: status {process.returncode}", flush=True)
            home.clear()
            _remove_copies(cache, number)
            proxy.fault, proxy.writes_until_fault = "", -1
            subprocess.run(
                [sys.executable, "-c", EXPIRE, url, *STAGES], cwd=ROOT, check=True,
                env=os.environ | environment | {"JAX_PLATFORMS": "cpu"},
            )  # fmt: skip
        ended = end(home.start(**environment))
        for stage in STAGES if ended.status == 0 else ():
            (copy,) = cache.glob(f"bucket_chain{number}-*/{stage}")
            shutil.move(copy, home.run / stage)
        problem = home.problem(ended)
        _remove_copies(cache, number)
    return Outcome(problem, PER_CHAIN, notes)


def _remove_copies(cache: Path, number: int) -> None:
    for copy in cache.glob(f"bucket_chain{number}-*"):
        shutil.rmtree(copy)
