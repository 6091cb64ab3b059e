"""``head-gating inspect FOLDER``, or ``user/name`` on the hub: the heads and neurons of a model, and its sizes."""

import argparse
from contextlib import suppress

from rich.console import Console

from gating.compact.files import find_folder
from gating.compact.load import load_compact
from gating.compact.recipe import Recipe, is_recipe
from gating.compact.stock import read_original
from gating.errors import InputError
from gating.proof.probe import make_probe
from gating.pruning.layers import build_original, build_recorded
from gating.pruning.measure import cache_bytes_per_token, count_macs, weight_megabytes
from gating.pruning.prune_report import num_parameters
from gating.report.rows import heads_per_layer, kept_heads_table, kept_neurons_table, layers_left, neurons_per_layer
from gating.run.folder import find_model


def run(arguments: argparse.Namespace) -> None:
    """Print a model's heads and neurons, and its sizes."""
    place = find_model(arguments.folder)[0] or arguments.folder
    folder = find_folder(place, revision=arguments.revision)
    model = load_compact(folder)
    original = read_original(model, folder)
    # A stock model has no former sizes.
    recorded = model if original is None else build_recorded(model, original)
    console = Console(highlight=False, soft_wrap=True)
    counts = []
    if heads := heads_per_layer(recorded):
        console.print(kept_heads_table(heads))
        counts.append(f"{sum(len(kept) for _, kept, _ in heads)} of {sum(before for *_, before in heads)} heads")
    if neurons := neurons_per_layer(recorded):
        console.print(kept_neurons_table(neurons))
        counts.append(f"{sum(kept for _, kept, _ in neurons):,} of {sum(before for *_, before in neurons):,} neurons")
    lines = [f"{type(model).__name__}: {', '.join(counts)}, {num_parameters(model):,} parameters"]
    if layers := layers_left(recorded):
        lines.insert(0, layers)
    if cache := cache_bytes_per_token(model if original is None else build_original(model, original)):
        now = cache_bytes_per_token(model)
        lines.append(f"{now:,} of {cache:,} bytes of keys and values are cached for a token")
    # The inputs of some models cannot be made from their configuration.
    with suppress(InputError):
        example = make_probe(model, batch_size=1, length=128)
        of = f"example of {example['input_ids'].numel()} tokens" if "input_ids" in example else "example"
        lines.append(f"{count_macs(model, example) / 1e6:,.1f} million multiply-accumulates for an {of}")
    origin = f"made from {Recipe.read(folder).title} by the recipe in" if is_recipe(folder) else "in"
    lines.append(f"{weight_megabytes(model):,.1f} MB of weights {origin} {place}")
    for line in lines:
        console.print(line)
