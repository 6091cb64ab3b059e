"""Peak memory of a training step of a decoder, measured in each mode, beside a formula for larger ones.

    python -m benchmarks.memory --model FOLDER_OR_HUB_NAME

Each mode trains two steps in a process of its own: `full` trains weights in float32 and gates, `adapters` LoRA of
rank 8 on all projections of attention beside weights in bfloat16, and gates, `gates` the gates alone on frozen weights
in bfloat16, with the model itself as the teacher. Matrices are multiplied in bfloat16. The peak is what the process has
beyond what it had before the model was loaded.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import gating
from benchmarks import records
from benchmarks.measuring import RESULTS, ask, machine
from benchmarks.peaks import MALLOC, in_use, peak, restart_peak
from gating.teachers.teacher import OpenTeacher

OUTPUT = RESULTS / "memory.jsonl"
MODES = ("full", "adapters", "gates")
# Tokens of a text, and texts of a step.
TOKENS, BATCH = 512, 4
GB = 1e9
_GPU_GB = 24
# Sizes of LLaMA 3.2 and 3.1, as in their configurations on the hub.
_LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8}
LARGE: Mapping[str, Mapping[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
_TIED = ("1B", "3B")
_RANK = 8


class Sizes(NamedTuple):
    """What the formula needs of a decoder: its parameters, those of adapters, and its shape."""

    parameters: int
    adapters: int
    layers: int
    width: int
    inner: int
    vocabulary: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every mode, with and without checkpoints of activations, and print both tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or hub name of a decoder")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoints", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.mode:
        print(json.dumps(_measure(options)))
        return
    sizes = sizes_of(AutoModelForCausalLM.from_config, AutoConfig.from_pretrained(options.model))
    about = {"tokens": TOKENS, "batch": BATCH, "model": Path(options.model).name, **sizes._asdict()}
    for mode in MODES:
        for checkpoints in ([], ["--checkpoints"]):
            measured = ask("benchmarks.memory", "--model", options.model, "--mode", mode, *checkpoints, **MALLOC)
            row = {"mode": mode, "checkpoints": bool(checkpoints), **about, **measured, **machine()}
            records.append(OUTPUT, row)
    print("\n".join(table(records.read(OUTPUT))))


def formula(sizes: Sizes, mode: str, *, tokens: int) -> float:
    """Return the bytes of a step with checkpoints of activations: of weights, states, activations and logits.

    Weights in float32 and Adam's two moments have 12 bytes, and with gradients, which come as the logits go, 16; frozen
    ones in bfloat16 have 2, and adapters in float32 16. Each layer keeps its input, in the type of the weights, and one
    layer at a time its activations, about eight vectors of its width and three of its neurons. Logits are there in
    bfloat16 and as logarithms of probabilities, their gradients twice, all in float32, and the teacher's in bfloat16.
    ``tokens`` are those of a step, over all texts.
    """
    kept = (4 if mode == "full" else 2) * sizes.layers * tokens * sizes.width
    layer = 2 * tokens * (8 * sizes.width + 3 * sizes.inner)
    logits = (16 if mode == "gates" else 14) * tokens * sizes.vocabulary
    passing = kept + max(layer, logits)
    if mode == "full":
        return float(max(16 * sizes.parameters, 12 * sizes.parameters + passing))
    return float(2 * sizes.parameters + (16 * sizes.adapters if mode == "adapters" else 0) + passing)


def sizes_of(make: Any, config: Any) -> Sizes:
    """Return the sizes of a decoder, made without memory."""
    with torch.device("meta"):
        model = make(config)
        model.tie_weights()  # transformers 5.0 leaves embeddings untied on this device.
    attention = [one for name, one in model.named_modules() if "attn" in name and isinstance(one, torch.nn.Linear)]
    adapters = sum(_RANK * (one.in_features + one.out_features) for one in attention)
    number = sum(one.numel() for one in model.parameters())
    return Sizes(
        number, adapters, config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size
    )


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what was measured beside the formula, and the formula for larger decoders, as lines."""
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(row["mode"], {"mode": row["mode"]})
        line["peak, GB" if not row["checkpoints"] else "with gradient checkpointing, GB"] = row["bytes"] / GB
        if row["checkpoints"]:
            sizes = Sizes(*(row[name] for name in Sizes._fields))
            line["formula, GB"] = formula(sizes, row["mode"], tokens=row["tokens"] * row["batch"]) / GB
    first = rows[0]
    shape = f"{first['parameters'] / 1e6:.0f} M parameters, {first['batch']} x {first['tokens']} tokens."
    return [*records.machines(rows), shape, "", records.markdown(lines.values()), "", *large_table()]


def large_table(tokens: int = 2048) -> list[str]:
    """Return the formula for larger decoders, with checkpoints of activations."""
    lines = []
    for name, shape in LARGE.items():
        config = LlamaConfig(**_LLAMA, **shape, tie_word_embeddings=name in _TIED)
        sizes = sizes_of(LlamaForCausalLM, config)
        cells = {mode: formula(sizes, mode, tokens=tokens) / GB for mode in MODES}
        fits = {mode: f"{value:.1f}{'' if value < _GPU_GB else ' (too much)'}" for mode, value in cells.items()}
        lines.append({"size": name, "parameters": f"{sizes.parameters / 1e9:.2f} billion", **fits})
    titles = {mode: f"{mode}, GB" for mode in MODES}
    return [
        f"By the formula, 1 x {tokens:,} tokens with gradient checkpointing, beside {_GPU_GB} GB:",
        "",
        records.markdown(lines, {"size": "LLaMA", "parameters": "parameters", **titles}),
    ]


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    before = in_use()
    model, gates = _load(options)
    in_use()  # What the loading has used goes back to the system.
    restart_peak()
    teacher = OpenTeacher(model, gates) if options.mode == "gates" else None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch = torch.randint(0, model.config.vocab_size, (BATCH, TOKENS))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            answers = None if teacher is None else teacher(input_ids=batch)
            outputs = model(input_ids=batch, labels=batch, use_cache=False)
            loss = outputs.loss
            if answers is not None:
                loss = gating.Distillation(temperature=1.0).loss(loss, outputs, answers, batch)
        del outputs, answers
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"bytes": peak() - before, "trained": sum(parameter.numel() for parameter in trained)}


def _load(options: argparse.Namespace) -> tuple[Any, gating.HeadGates]:
    dtype = torch.float32 if options.mode == "full" else torch.bfloat16
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).train()
    if options.mode != "full":
        model.requires_grad_(False)
    wrapped: Any = model
    if options.mode == "adapters":
        import peft

        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=_RANK, target_modules=r".*self_attn\..*_proj"))
    gates = gating.inject_gates(model, units=["heads", "neurons"])
    if options.checkpoints:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return wrapped, gates


if __name__ == "__main__":
    main()
