"""Load the compact models of the census in a fresh process, with transformers alone, and compare outputs.

    python -m benchmarks.census.reload FOLDER [FOLDER ...]

Each folder has a compact model, and a batch with the outputs that the saved model had; one JSON line is printed for it.
This process must not import this package, so that it reads and compares outputs by functions of its own.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers


def main() -> None:
    """Print the outcome of each folder of the command line."""
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:]:
        try:
            found: dict[str, Any] = {"difference": _difference(Path(name))}
        except Exception as error:  # An outcome, not a failure of the census.
            found = {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print("RELOADED", json.dumps({"folder": name, **found}), flush=True)


def _difference(folder: Path) -> float:
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    (architecture,) = config["architectures"]
    autos = [
        name for name, path in config["auto_map"].items() if path.partition("__of__")[0].endswith(f".{architecture}")
    ]
    auto_class = getattr(transformers, autos[0] if autos else "AutoModel")
    model = auto_class.from_pretrained(folder / "model", trust_remote_code=True).eval()
    assert not any(name.partition(".")[0] == "gating" for name in sys.modules)
    saved = torch.load(folder / "batch.pt", weights_only=True)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = list(_tensors(model(**saved["batch"])))
    pairs = [(one, other) for one, other in zip(saved["outputs"], outputs, strict=True) if one.numel()]
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")
    return max(_relative_difference(one, other) for one, other in pairs)


def _relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    # Logits of places that a model masks are infinite in both.
    differs = one != other
    largest = one[one.isfinite()].abs().max().clamp_min(1e-30) if one.isfinite().any() else torch.tensor(1.0)
    return float((one - other)[differs].abs().max() / largest) if differs.any() else 0.0


def _tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            # Probabilities have an entry for each present head; the saved outputs are without them.
            if not str(name).endswith("attentions"):
                yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


if __name__ == "__main__":
    main()
