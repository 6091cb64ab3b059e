"""Gates in a plain PyTorch loop: train, remove heads, recover, save, load.

    python examples/own_loop.py [FOLDER]

Needs: head-gating
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import gating
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

VOCABULARY, LENGTH, BATCH_SIZE = 40, 24, 32
SEARCH_STEPS, RECOVERY_STEPS, KEPT = 240, 80, 3
Batch = dict[str, Tensor]


def batches(number: int, *, seed: int) -> Iterator[Batch]:
    """Yield batches of texts; the label is whether the fourth token is an odd number."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        tokens = torch.randint(0, VOCABULARY, (BATCH_SIZE, LENGTH), generator=generator)
        yield {"input_ids": tokens, "labels": tokens[:, 3] % 2}


def search_and_remove(model: BertForSequenceClassification) -> gating.FinalizeReport:
    """Train weights and gates together, then remove all heads but those that the objective keeps."""
    gates = gating.inject_gates(model)
    search = gating.Search(gates, gating.ExactBudget(num_heads=KEPT))
    # Groups of weights, gates and multipliers: gates have a rate of their own, and no weight decay.
    groups = gating.parameter_groups(model, lr=1e-3, weight_decay=0.01, gates=gates, objective=search.objective)
    optimizer = torch.optim.AdamW(groups)
    model.train()
    for step, batch in enumerate(batches(SEARCH_STEPS, seed=0)):
        search.update(step / SEARCH_STEPS)
        loss = model(**batch).loss
        # The search observes the loss, too: the descent waits for it to fall.
        search.add_penalty(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 40 == 0:
            print(f"step {step:3d}: loss {loss.item():.3f}, {gates.expected_open().item():.1f} heads expected open")
    search.update(1.0)
    return gating.finalize(model, gates)


def recover(model: BertForSequenceClassification) -> None:
    """Train the compact model. Its parameters are new, so the optimizer must be, too."""
    optimizer = torch.optim.AdamW(gating.parameter_groups(model, lr=5e-4, weight_decay=0.01))
    schedule = get_linear_schedule_with_warmup(optimizer, 0, RECOVERY_STEPS)
    model.train()
    for batch in batches(RECOVERY_STEPS, seed=1):
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return the share of new texts that are classified rightly."""
    model.eval()
    right = [model(**batch).logits.argmax(dim=-1) == batch["labels"] for batch in batches(20, seed=2)]
    return torch.cat(right).float().mean().item()


@torch.no_grad()
def milliseconds(*models: nn.Module, repeats: int = 50) -> list[float]:
    """Return the median time of a forward pass of each model, timed in turns."""
    (batch,) = batches(1, seed=3)
    times: list[list[float]] = [[] for _ in models]
    for _ in range(repeats):
        for model, seconds in zip(models, times, strict=True):
            start = time.perf_counter()
            model.eval()(**batch)
            seconds.append(time.perf_counter() - start)
    return [1000 * sorted(seconds)[repeats // 2] for seconds in times]


def main(folder: Path) -> None:
    """Run the example, and write the compact model into a folder."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128
    )
    model = BertForSequenceClassification(config)
    dense = copy.deepcopy(model)

    report = search_and_remove(model)
    print(f"kept {report.num_heads} of {report.num_heads_before} heads: {report.kept_heads}")
    print(f"outputs differ from the gated model's by {report.max_difference:.1e}")
    recover(model)

    gating.save_compact(model, folder / "compact")
    loaded = gating.load_compact(folder / "compact")
    before, after = milliseconds(dense, loaded)
    print(f"accuracy {accuracy(loaded):.1%}, {before:.1f} -> {after:.1f} ms for a forward pass")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Gates in a plain PyTorch loop.")
    parser.add_argument("folder", nargs="?", type=Path, help="folder for the compact model; a temporary one by default")
    if folder := parser.parse_args().folder:
        main(folder)
        print(f"the compact model is in {folder / 'compact'}")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
