"""Families of unusual sizes, trained some steps, with uneven and emptied layers; run with ``pytest -m slow``."""

import dataclasses
import inspect
import random

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import gating
from gating.proof.probe import make_probe
from gating.serving.graphs.runtime import GraphModel
from tests.support.family_models import FAMILIES

pytest.importorskip("onnxruntime", reason="the packages of the export are not installed")

pytestmark = pytest.mark.slow

# Neither powers of two, nor twice the same number.
SIZES = {
    72: ("hidden_size", "d_model", "dim", "n_embd"),
    6: ("num_attention_heads", "n_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads"),
    56: ("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"),
}
ENCODERS = ("bert", "distilbert", "roberta", "deberta-v2", "electra", "albert", "albert-1group", "mpnet")
OTHERS = ("t5", "mt5", "bart", "marian", "pegasus", "gpt2", "llama-mha", "vit", "whisper", "wav2vec2")


def build_unusual(family):
    one = FAMILIES[family]
    sizes = {name: size for size, names in SIZES.items() for name in names if name in one.arguments}
    if "num_conv_pos_embedding_groups" in one.arguments:
        sizes |= {"num_conv_pos_embedding_groups": 6, "num_conv_pos_embeddings": 18}
    return dataclasses.replace(one, arguments=one.arguments | sizes).build()


def train(model):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for seed in range(6):
        torch.manual_seed(seed)
        loss = (model(**make_probe(model, batch_size=3, length=10)).logits - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def prune(model):
    """Remove heads so that layers are emptied, halved, whole or left with one head; and neurons, all of one layer."""
    rng, heads = random.Random(0), {}
    for number, block in enumerate(gating.find_attention_blocks(model)):
        count = (block.num_heads, block.num_heads // 2, 0, block.num_heads - 1)[number % 4]
        heads[block.name] = rng.sample(range(block.num_heads), count)
    gating.prune_heads(model, heads)
    blocks = gating.find_feed_forward_blocks(model, group_size=8)
    groups = {block.name: range(7) if number == 1 else [0, 2] for number, block in enumerate(blocks)}
    gating.prune_neurons(model, groups, group_size=8)


def padded(model, inputs, lengths, side):
    generator, config = torch.Generator().manual_seed(5), model.config.get_text_config()
    columns = {}
    for prefix, its_lengths in (("", lengths), ("decoder_", lengths[::-1])):
        rows = [torch.randint(3, config.vocab_size - 1, (length,), generator=generator) for length in its_lengths]
        columns[f"{prefix}input_ids"] = rows
        columns[f"{prefix}attention_mask"] = [torch.ones_like(row) for row in rows]
        columns[f"{prefix}token_type_ids"] = [(torch.arange(len(row)) > 1).long() for row in rows]
    return {
        name: pad_sequence(
            columns[name],
            batch_first=True,
            padding_side=side,
            padding_value=(config.pad_token_id or 0) if name.endswith("input_ids") else 0,
        )
        for name in inputs
    }


def expected_logits(model, batch):
    has_positions = "position_ids" in inspect.signature(model.forward).parameters
    if has_positions and model.can_generate() and not model.config.is_encoder_decoder:
        batch = batch | {"position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("family", [*ENCODERS, *OTHERS])
def test_a_compact_model_of_unusual_sizes_gives_its_outputs_at_real_positions(family, tmp_path):
    model = build_unusual(family)
    train(model)
    prune(model)
    folder = gating.save_compact(model, tmp_path / "compact")
    report = gating.export_onnx(folder, tmp_path / "exported")
    assert report.max_difference <= 1e-4
    assert report.refused == ()
    if "input_ids" not in report.inputs:
        return  # The check of the export runs images and sounds of these sizes.
    graph = GraphModel(model.config, report.folder)
    for lengths in ((8, 5, 2), (3, 17), (20,), (1,)):
        for side in ("right", "left"):
            batch = padded(model, report.inputs, lengths, side)
            expected, actual = expected_logits(model, batch), graph(**batch)["logits"]
            mask = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
            if expected.shape[:2] == mask.shape:
                expected, actual = expected[mask], actual[mask]
            assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4
