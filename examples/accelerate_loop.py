"""Fine-tune with gates in a loop of accelerate: one process or several, in any precision that accelerate has.

    python examples/accelerate_loop.py                                       one process, in seconds
    accelerate launch --num_processes 2 examples/accelerate_loop.py          two processes
    accelerate launch --mixed_precision bf16 examples/accelerate_loop.py     in bfloat16

The model is tiny and the data are made up. Needs: head-gating[trainer]
"""

import tempfile
from pathlib import Path

import gating
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from gating.integrations import without_autocast
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

SEARCH_STEPS, RECOVERY_STEPS = 90, 30


def batches(loader: DataLoader, number: int):
    """Yield a number of batches, epoch after epoch."""
    done = 0
    while done < number:
        for batch in loader:
            if done == number:
                return
            yield batch
            done += 1


def main() -> None:
    """Search, remove, recover and save."""
    accelerator = Accelerator()
    set_seed(0)
    model = BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
    )
    tokens, labels = torch.randint(4, 50, (512, 12)), torch.arange(512) % 2
    tokens[:, 0] = 2 + labels
    data = DataLoader(TensorDataset(tokens, labels), batch_size=16, shuffle=True)

    # Gates before prepare(), so that DDP knows them.
    gates = gating.inject_gates(model)
    search = gating.Search(gates, gating.ExactBudget(num_heads=4))
    optimizer = torch.optim.AdamW(gating.parameter_groups(model, lr=1e-3, gates=gates, objective=search.objective))
    wrapped, optimizer, data = accelerator.prepare(model, optimizer, data)
    wrapped.train()
    for step, (inputs, targets) in enumerate(batches(data, SEARCH_STEPS)):
        search.update(step / SEARCH_STEPS)
        loss = wrapped(input_ids=inputs, labels=targets).loss
        accelerator.backward(search.add_penalty(loss))
        optimizer.step()
        optimizer.zero_grad()

    # The model itself again, without DDP and autocast; then a new optimizer, for its parameters are new.
    model = without_autocast(model)
    search.update(1.0)
    gating.finalize(model, gates)
    accelerator.free_memory()
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=5e-4))
    wrapped.train()
    for inputs, targets in batches(data, RECOVERY_STEPS):
        loss = wrapped(input_ids=inputs, labels=targets).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    if accelerator.is_main_process:
        with tempfile.TemporaryDirectory() as parent:
            folder = gating.save_compact(without_autocast(model), Path(parent) / "compact")
            kept = sum(block.num_heads for block in gating.find_attention_blocks(gating.load_compact(folder)))
        print(f"{kept} heads are left; the last loss is {loss.item():.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
