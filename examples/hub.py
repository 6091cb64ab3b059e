"""Save a compact model, upload it to the Hugging Face Hub, and load it again.

    python examples/hub.py                            save and load a folder, without a network
    python examples/hub.py --repo user/small-bert     and upload it in between; log in first: hf auth login

A new repository is private. The model is a small BERT with random weights; in its place may be any model of
transformers whose heads or neurons were removed.

Needs: head-gating
"""

import argparse
import tempfile
from pathlib import Path

import gating
import torch
from transformers import BertConfig, BertForSequenceClassification


def main() -> None:
    """Save, upload if asked, load, and compare the outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", help="name on the hub to upload to: user/name")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=2, intermediate_size=128, vocab_size=99
    )
    model = BertForSequenceClassification(config).eval()
    gating.prune_heads(model, {0: [1, 2], 1: [0]})

    with tempfile.TemporaryDirectory() as parent:
        # Name and token are checked first. After a failed upload, the folder is there and the error names the command.
        folder = gating.save_compact(
            model, Path(parent) / "compact", repo_id=arguments.repo, private=not arguments.public
        )
        # From the hub only configuration, weights and tokenizer are downloaded, and no code of the repository is run.
        place = arguments.repo or folder
        loaded = gating.load_compact(place)

    tokens = torch.arange(1, 9).reshape(1, 8)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    print(f"{place}: {loaded.num_parameters():,} parameters, and the same outputs as before")
    if not arguments.repo:
        print("To upload it as well: python examples/hub.py --repo user/name")


if __name__ == "__main__":
    main()
