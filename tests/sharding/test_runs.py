"""Whole sharded runs, compared with one process that has the same global batch."""

import json
import random
from pathlib import Path

import pytest

from tests.run.test_language_runs import SMALL_LLAMA
from tests.support.sharded_runs import check_equal, run_both
from tests.support.tiny_run import WORDS, make_model_folder, write_table
from tests.tasks.test_tasks import SETTINGS

pytestmark = pytest.mark.processes

# No random draws: those of gates and of dropout are others in each process.
EXACT = ["objective=topk", "objective.variant=straight_through"]
LANGUAGE = [setting for setting in SETTINGS if not setting.startswith(("objective.", "data.batch", "logger"))]
DROPOUT = ["+model.config.hidden_dropout_prob=0.0", "+model.config.attention_probs_dropout_prob=0.0"]
T5 = [
    *("model=scratch", "model.model_type=t5", "task=seq2seq", "data=pairs", "data.max_length=24"),
    *("+model.config.d_model=32", "+model.config.d_kv=8", "+model.config.d_ff=64", "+model.config.num_layers=2"),
    *("+model.config.num_heads=4", "+model.config.dropout_rate=0.0", "+model.config.vocab_size=300"),
    *("data.max_target_length=12", "data.eval_batch_size=4", *EXACT, "objective.num_heads=10"),
]
UNITS = ["gates.units=[heads,neurons]", "gates.group_size=16", "objective.num_heads=null", "objective.keep=0.4"]
# Settings, number of processes, and tolerance of the weights.
BERT = {
    "straight-through": ([*EXACT, "objective.num_heads=4"], 3, 1e-5),
    # A model that is cut is not compensated.
    "heads and neurons": ([*EXACT, *UNITS, "compensate=false"], 2, 1e-5),
    "heads and neurons, a search": ([*EXACT, *UNITS, "fine_tuning=0"], 2, 1e-5),
    "importance": (["objective=importance", "objective.num_heads=4"], 2, 1e-5),
    "magnitude, accumulated, checkpointed": (
        [
            *("objective=magnitude", "objective.num_heads=4", "gradient_checkpointing=true"),
            *("trainer.accumulate_grad_batches=2", "+trainer.gradient_clip_algorithm=value"),
            "trainer.gradient_clip_val=0.001",
        ],
        2,
        1e-5,
    ),
    "adapters": ([*EXACT, "objective.num_heads=4", "adapters=lora", "adapters.target_modules=all-linear"], 2, 1e-5),
    "distillation": ([*EXACT, "objective.num_heads=4", "distillation=logits"], 2, 1e-5),
    "hidden states": ([*EXACT, "objective.num_heads=4", "distillation=hidden"], 2, 1e-5),
    "dense": (["objective=none"], 2, 1e-5),
    "bfloat16": ([*EXACT, "objective.num_heads=4", "trainer.precision=bf16-mixed"], 2, 1e-2),
    "sgd": ([*EXACT, "objective.num_heads=4", "optimizer=sgd"], 2, 1e-5),
    "random": (["objective=random", "objective.num_heads=4"], 2, 1e-5),
    "speedup": ([*EXACT, "objective.speedup=1.05", "latency.max_seconds=null"], 2, 1e-5),
}
IN_CI = ("straight-through", "heads and neurons", "importance", "adapters", "distillation")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the settings of a classifier; examples divide evenly among two and three processes."""
    folder = tmp_path_factory.mktemp("inputs")
    files = {
        split: write_table(folder / f"{split}.tsv", rows=rows, seed=seed)
        for seed, (split, rows) in enumerate({"train": 48, "validation": 12, "test": 12}.items())
    }
    return [
        *("model=pretrained", f"model.name={make_model_folder(folder / 'model')}", "data=files", *DROPOUT),
        *(f"data.{split}={path}" for split, path in files.items()),
        *("trainer.max_steps=12", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1", "optimizer.lr=1e-3"),
        *("data.eval_batch_size=4", "latency.max_seconds=1"),
    ]


@pytest.mark.parametrize("case", [pytest.param(x, marks=() if x in IN_CI else pytest.mark.slow) for x in BERT])
def test_a_bert_is_the_same_as_in_one_process(case, bert, tmp_path):
    settings, num_ranks, tolerance = BERT[case]
    one, other = run_both([*bert, *settings], tmp_path, num_ranks=num_ranks)
    if case == "speedup":
        # Timings can differ; whether some rank waits for ever is the question.
        assert other["record"]["units"].keys() == one["record"]["units"].keys()
    elif case == "bfloat16":
        assert one["record"] == other["record"]
    else:
        check_equal(one, other, tolerance=tolerance)


def test_a_language_model_without_room_for_copies_is_saved_without_a_check(tmp_path):
    rng = random.Random(0)
    # These give an even number of blocks: of an odd one, two ranks repeat one in each epoch.
    lines = [
        f"{rng.choice(('ROMEO', 'JULIET'))}: {' '.join(rng.choices(WORDS, k=rng.randint(2, 7)))}." for _ in range(303)
    ]
    (tmp_path / "play.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = ["data=text", f"data.train={tmp_path}/play.txt", "data.eval_batch_size=4"]
    settings = [*LANGUAGE, *SMALL_LLAMA, *data, *EXACT, "objective.num_heads=4"]
    one, other = run_both(settings, tmp_path, has_room=False)
    check_equal(one, other)
    samples = [(tmp_path / name / "report" / "samples.jsonl").read_text() for name in ("one", "out")]
    assert samples[0] == samples[1]
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "out")]
    assert ["speedup" in values for values in metrics] == [True, False]


@pytest.mark.parametrize("num_ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_t5_generates_the_same_texts(num_ranks, tmp_path):
    settings = []
    for seed, (split, rows) in enumerate({"train": 48, "validation": 12, "test": 12}.items()):
        rng = random.Random(seed)
        texts = [rng.choices(["ein", "Hund", "lief", "über", "Gras"], k=rng.randint(2, 5)) for _ in range(rows)]
        path = Path(tmp_path / f"{split}.tsv")
        lines = ["text_a\ttext_b", *(f"{' '.join(text)}\t{' '.join(text[::-1])}" for text in texts)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings.append(f"data.{split}={path}")
    one, other = run_both([*LANGUAGE, *T5, *settings], tmp_path, num_ranks=num_ranks)
    check_equal(one, other)
    assert "test/bleu" in one["metrics"]
