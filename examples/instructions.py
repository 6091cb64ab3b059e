"""Tune a chat model on instructions in TRL's SFTTrainer: gates on frozen weights, then healing of what stays.

    python examples/instructions.py                     a tiny model and made-up conversations, offline, in seconds
    python examples/instructions.py MODEL TRAIN.jsonl   a chat model of the hub or a folder; lines with messages or
                                                        prompt and completion

The second writes to outputs/instructions, or to --output. Needs: head-gating[trainer], trl
"""

import argparse
import tempfile
from pathlib import Path

import gating
import torch
from datasets import Dataset, load_dataset
from gating.integrations import GatedTrainerMixin
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class GatedSFTTrainer(GatedTrainerMixin, SFTTrainer):
    """TRL's supervised fine-tuning, with gates."""


def made_up() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase, Dataset]:
    """Return a random LLaMA that reads bytes, its tokenizer with a chat template, and conversations about sums."""
    torch.manual_seed(0)
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({name: number for number, name in enumerate([*special, *letters])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=special[0],
        eos_token=special[1],
        additional_special_tokens=special[2:],
        chat_template=TEMPLATE,
    )
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=1, **sizes
    )
    sums = [(one, other) for one in range(5) for other in range(5)]
    rows = [
        [{"role": "user", "content": f"{one}+{other}"}, {"role": "assistant", "content": str(one + other)}]
        for one, other in sums
    ]
    return LlamaForCausalLM(config), tokenizer, Dataset.from_dict({"messages": rows})


def main(
    output: Path, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, data: Dataset, *, steps: int, keep: float
) -> None:
    """Train, and answer the first message of the data."""
    trainer = GatedSFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(output / "checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=4,
            max_length=256,
            learning_rate=1e-4,
            warmup_steps=0.1,
            logging_steps=10,
            save_strategy="no",
            use_cpu=not torch.accelerator.is_available(),
            report_to="none",
        ),
        train_dataset=data,
        processing_class=tokenizer,
        # Gates on frozen weights learn from the model as it was; the second half of the steps trains the weights.
        objective=gating.DeterministicBudget(keep=keep, ranking=gating.Fisher(per="token")),
        freeze_weights=True,
        distillation=gating.Distillation(temperature=1.0),
        recovery=0.5,
        gate_options={"units": ["heads", "neurons"], "group_size": 8},
    )
    folder = trainer.train_and_compact(output / "compact")
    compact = gating.load_compact(folder)
    reader = AutoTokenizer.from_pretrained(folder)
    first = data[0]["messages"][:1] if "messages" in data.column_names else data[0]["prompt"]
    message = [{"role": "user", "content": first}] if isinstance(first, str) else first
    inputs = reader.apply_chat_template(message, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    written = compact.generate(**inputs, do_sample=False, max_new_tokens=40)
    print(f"Asked: {message[0]['content']}")
    print(f"Answered: {reader.decode(written[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Tune a chat model on instructions with gates, in TRL's SFTTrainer.")
    parser.add_argument(
        "model", nargs="?", help="folder of a chat model, or its name on the hub; a tiny one by default"
    )
    parser.add_argument("table", nargs="?", help="jsonl file with the column messages, or prompt and completion")
    parser.add_argument("--steps", type=int, default=400, help="steps of search and healing (default: 400)")
    parser.add_argument("--keep", type=float, default=0.8, help="share of the cost of heads and neurons (default: 0.8)")
    parser.add_argument("--output", type=Path, default=Path("outputs/instructions"), help="a new folder")
    arguments = parser.parse_args()
    if arguments.model and not arguments.table:
        parser.error("give conversations, too: python examples/instructions.py MODEL TRAIN.jsonl")
    if arguments.model:
        pretrained = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
        chats = load_dataset("json", data_files=arguments.table, split="train")
        reader = AutoTokenizer.from_pretrained(arguments.model)
        main(arguments.output, pretrained, reader, chats, steps=arguments.steps, keep=arguments.keep)
        print(f"The compact model is in {arguments.output / 'compact'}.")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary), *made_up(), steps=80, keep=0.6)
