"""Former module names that the documentation told users to import."""

import subprocess
import sys

from tests.support.tiny_run import ROOT

CODE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from gating.lightning.sources import Examples, load_files
    from gating.lightning.tasks.base import Prepared, Task
    from gating.lightning.tasks import SequenceClassification
    import gating.lightning
assert any("gating.lightning has moved" in str(one.message) for one in caught), caught
import gating.data.sources, gating.tasks.base
assert gating.lightning.sources is gating.data.sources
assert Prepared is gating.tasks.base.Prepared and load_files is gating.data.sources.load_files
"""


def test_former_modules_are_those_of_today_and_warn():
    process = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_the_package_imports_no_former_module():
    code = "import sys, gating, gating.run.prepare; assert 'gating.lightning' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
