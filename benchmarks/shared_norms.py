"""Norms across heads: how much outputs change if removed heads leave a constant in place of their statistics.

OLMo2 and similar models normalize the queries of all heads together, and the keys. A compact model without some heads
could keep the mean of their share of the mean square, measured on one batch. This compares it with the model with
masked heads, on other batches, for OLMo2 with random weights.

    python -m benchmarks.shared_norms
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Olmo2Config, Olmo2ForCausalLM

HEAD_DIM, NUM_HEADS, VOCABULARY = 64, 8, 1000
# No special tokens, which would have to be in the vocabulary.
NONE = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
SIZES = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": NUM_HEADS}


def measure(num_removed: int, seed: int) -> tuple[float, float]:
    """Return the difference of logits, relative to their norm, and the fraction of tokens with another prediction."""
    torch.manual_seed(seed)
    model = Olmo2ForCausalLM(Olmo2Config(vocab_size=VOCABULARY, **SIZES, **NONE)).eval()
    removed = torch.randperm(NUM_HEADS)[:num_removed]
    is_kept = torch.ones(NUM_HEADS, 1).index_fill(0, removed, 0.0).expand(-1, HEAD_DIM).flatten()
    batches = torch.randint(VOCABULARY, (5, 4, 64))
    norms = [norm for layer in model.model.layers for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm)]
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: (inputs[0] * is_kept,))
    shares: dict[Any, Tensor] = {}
    hooks = [norm.register_forward_hook(_measure_share(is_kept, shares)) for norm in norms]
    with torch.no_grad():
        model(batches[0])
        for hook in hooks:
            hook.remove()
        masked = torch.stack([model(batch).logits for batch in batches[1:]])
        for norm in norms:
            norm.register_forward_hook(_with_constant_share(is_kept, shares))
        constant = torch.stack([model(batch).logits for batch in batches[1:]])
    differs = masked.argmax(-1) != constant.argmax(-1)
    return float((masked - constant).norm() / masked.norm()), float(differs.float().mean())


def _measure_share(is_kept: Tensor, shares: dict[Any, Tensor]) -> Callable[..., None]:
    def hook(norm: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        shares[norm] = (inputs[0] * (1 - is_kept)).square().mean()

    return hook


def _with_constant_share(is_kept: Tensor, shares: dict[Any, Tensor]) -> Callable[..., Tensor]:
    def hook(norm: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        mean_square = (inputs[0] * is_kept).square().mean(-1, keepdim=True) + shares[norm]
        result: Tensor = norm.weight * inputs[0] * torch.rsqrt(mean_square + norm.variance_epsilon)
        return result

    return hook


def main() -> None:
    """Print one line for each number of removed heads."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_norms", description=description)
    parser.add_argument("--seeds", type=int, default=3, help="number of random models")
    num_seeds = parser.parse_args().seeds
    for num_removed in (1, 2, 4):
        results = torch.tensor([measure(num_removed, seed) for seed in range(num_seeds)])
        difference, predictions = results.mean(0).tolist()
        print(
            f"{num_removed} of {NUM_HEADS} heads removed: logits differ by {difference:.1e} (largest of {num_seeds} "
            f"models {results[:, 0].max():.1e}), predictions of {predictions:.1%} of the tokens"
        )


if __name__ == "__main__":
    main()
