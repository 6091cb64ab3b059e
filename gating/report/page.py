"""The report of a run as one HTML file that needs no network."""

import math
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from gating.report.figures import as_source, course_figures, final_gates
from gating.report.results import RunResults
from gating.report.rows import SHOWN, quotient, show_number, show_share
from gating.report.summary import machine, versions
from gating.storage.files import replacing_file
from gating.units import UNITS


def write_page(path: Path, results: RunResults, *, gates_file: Path) -> None:
    """Write the report as one HTML file, whole or not at all, beside the picture of the gates, which a search has."""
    # Names, settings and samples come from users and models: everything is escaped.
    environment = Environment(
        loader=PackageLoader("gating", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    gates = final_gates(results) if results.history.gate_values else None
    text = environment.get_template("page.html.j2").render(
        run=results,
        units={name: SHOWN[name][0] for name in (*UNITS, "layers", "parameters")},
        gates="" if gates is None else as_source(gates),
        course={name: as_source(figure) for name, figure in course_figures(results).items()},
        about=_about(),
        count=lambda number: show_number(number, None),
        fewer=_fewer,
        milliseconds=lambda seconds: show_number(1e3 * seconds, 4),
        nan=math.nan,
    )
    if gates is not None:
        gates_file.parent.mkdir(parents=True, exist_ok=True)
        gates.savefig(gates_file, dpi=150)
    with replacing_file(path) as new:
        # Names of files need not be valid text.
        new.write_text(text, encoding="utf-8", errors="replace")


def _about() -> dict[str, object]:
    """Return the machine and the versions by their names."""
    about = {"machine": machine(), "threads": torch.get_num_threads(), "Python": platform.python_version()}
    with suppress(PackageNotFoundError):  # A checkout need not be installed.
        about["head-gating"] = version("head-gating")
    return about | versions()


def _fewer(before: str, after: str) -> str:
    """Return the number of units before, and how many fewer there are, such as ``of 72: 75 % fewer``."""
    return f"of {before}: {show_share(1 - quotient(after, before), scale=100, decimals=0)} % fewer"
