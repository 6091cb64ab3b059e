"""Commands with two processes, on CPUs, through gloo."""

import os
import subprocess
from pathlib import Path

from tests.support.tiny_run import ROOT
from tests.support.warm_python import warm_python

__all__ = ["ROOT", "SUPPORT", "TWO", "run_script"]

TWO = ["trainer=ddp", "trainer.devices=2", "trainer.precision=32-true", "data.batch_size=4"]
SUPPORT = ROOT / "tests" / "support"


def run_script(script: str, arguments: list[str], *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [*warm_python(), str(SUPPORT / script), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
