"""Embedding models are measured on texts that they were not trained on; pages have the stored results."""

import pytest
import torch
from hydra import compose, initialize_config_dir

import gating
from benchmarks import page, records
from benchmarks.embeddings import __main__ as embeddings
from benchmarks.embeddings.lines import LINES, PYTORCH, RUNTIMES, key, settings_of, wanted
from benchmarks.embeddings.sets import Pairs, Retrieval, Sets, read_sets
from benchmarks.embeddings.texts import ABOUT, TRAIN, VALIDATION, write_texts
from tests.support.tiny_sentences import make_sentence_model, sentences_of
from train import CONF

STORED = records.read(embeddings.RESULTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with small tables, whose training texts have some of the evaluation texts."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [("A man sings.", "Someone sings.", "0"), ("A dog runs.", "A cat sleeps.", "2")]
    tables = {
        "sick": [(one, other, label, "4.5") for one, other, label in pairs],
        "snli20k": [("A boy eats.", "A child eats.", "0"), ("A boy eats.", "A girl reads.", "1")],
    }
    headers = {"sick": "text_a\ttext_b\tlabel\trelatedness", "snli20k": "text_a\ttext_b\tlabel"}
    for name, rows in tables.items():
        for split in ("train", "validation", "test"):
            training = name == "snli20k" and split == "train"
            own = [("a dog  RUNS", "New.", "0"), ("Old.", "Older.", "1")] if training else rows
            _write(folder / name / f"{split}.tsv", headers[name], own)
    for name, column in (("multi30k", "text_a"), ("sst2_sentence", "text"), ("trec", "text")):
        texts = [(f"{name} has the text number {number}",) for number in range(700)]
        _write(folder / name / "train.tsv", column, [*texts, ("someone SINGS",), ("A child, eats",)])
    return folder


def _write(path, header, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")


@pytest.mark.runs
def test_training_texts_have_none_of_the_evaluation_texts(data, tmp_path):
    sets = read_sets(data, None)
    assert set(sets.pairs) == {"sick"}
    assert sets.retrieval["snli"] == Retrieval(["A child eats."], [0], ["A boy eats."])
    counts = write_texts(data, tmp_path, sets)
    again = write_texts(data, tmp_path / "again", sets)
    assert counts["sha256"] == again["sha256"]
    lines = (tmp_path / TRAIN).read_text(encoding="utf-8").splitlines()[1:]
    assert sum(counts["texts"].values()) == 2 * len(lines) == 2 * counts["pairs"]
    texts = {text for line in lines for text in line.split("\t")}
    validation = (tmp_path / VALIDATION).read_text(encoding="utf-8").splitlines()[1:]
    assert not texts & set(validation)
    assert "Old." in texts
    assert "New." not in texts
    plain = {"".join(filter(str.isalnum, text.lower())) for text in [*texts, *validation]}
    assert not plain & {"".join(filter(str.isalnum, text.lower())) for text in sets.texts()}


def test_quality_of_a_model_beside_itself():
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers

    from benchmarks.embeddings.quality import measure_quality, nearest

    words = [f"w{number}" for number in range(40)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[modules.StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    first, second = words[:20], words[20:]
    scores = model.similarity_pairwise(model.encode(first), model.encode(second)).tolist()
    sets = Sets({"sick": Pairs(first, second, scores)}, {"bbc": Retrieval(first, list(range(20)), first)}, words)
    neighbors = nearest(model, words)
    assert all(len(own) == 10 and number not in own for number, own in enumerate(neighbors))
    quality = measure_quality(model, sets, neighbors)
    assert quality == {name: pytest.approx(100) for name in ("sick", "bbc_ndcg", "bbc_recall", "neighbors")}
    reverse = Sets({"sick": Pairs(first, second, [-score for score in scores])}, {}, words)
    others = [set(range(40)) - own - {number} for number, own in enumerate(neighbors)]
    assert measure_quality(model, reverse, others) == {"sick": pytest.approx(-100), "neighbors": 0}


@pytest.mark.runs
def test_models_are_the_same_in_each_runtime_and_in_half_precision(tmp_path):
    from sentence_transformers import SentenceTransformer

    from benchmarks.embeddings.models import open_model
    from benchmarks.embeddings.release import release
    from benchmarks.embeddings.speed import measure_speed
    from gating.embedding.processor import SentenceProcessor

    dense = SentenceTransformer(str(make_sentence_model(tmp_path / "dense")), device="cpu")
    gating.prune_heads(dense.transformers_model, {0: [1], 2: [0, 3]})
    compact = str(tmp_path / "compact")
    gating.save_compact(dense.transformers_model, compact, tokenizer=SentenceProcessor(dense))
    texts = sentences_of(9)
    models = {("dense", runtime): open_model(compact, runtime) for runtime in RUNTIMES}
    expected = models["dense", PYTORCH].encode(texts)
    assert models["dense", "ONNX Runtime"].encode(texts) == pytest.approx(expected, abs=1e-5)
    assert models["dense", "ONNX Runtime, int8"].encode(texts) == pytest.approx(expected, abs=0.2)
    for speeds in measure_speed(models, sizes=((1, 2), (4, 3)), vocabulary=45, budget_s=0).values():
        assert speeds["per_second_4x3"] > 0
        assert {"over_pytorch_1x2", "over_dense_1x2"} <= set(speeds)
    assert release(compact, str(tmp_path / "half")).endswith("MB in half precision")
    half = SentenceTransformer(str(tmp_path / "half"), device="cpu", trust_remote_code=True)
    assert half.transformers_model.dtype == torch.float16
    assert half.float().encode(texts) == pytest.approx(expected, abs=5e-3)
    assert "in half precision" in (tmp_path / "half" / "README.md").read_text(encoding="utf-8")


@pytest.mark.runs
@pytest.mark.parametrize("name", [name for name, line in LINES.items() if line.settings is not None])
def test_settings_of_lines_are_composed(name, tmp_path):
    settings = settings_of(name, 3, texts=tmp_path, folder=tmp_path / "run")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=settings)
    assert composed.data.about.startswith(ABOUT) == (name != "example")
    assert composed.data.about.endswith("made by rules.") == (composed.task.negations > 0)
    assert composed.seed == 3
    assert composed.task.loss == "distance"


def test_runs_of_other_settings_and_texts_have_other_folders(tmp_path):
    from benchmarks.embeddings.runs import run_folder

    folders = set()
    for text in ("a", "b"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / TRAIN).write_text(text)
        folders |= {run_folder(name, seed, work=tmp_path) for name in ("ours-2", "ours-2-long") for seed in (0, 1)}
    assert len(folders) == 8


def test_wrong_commands_are_refused(capsys):
    for arguments in (
        ["lines"],
        ["quality", "--data", "x", "--work", "y"],
        ["release", "x"],
        ["lines", "--lines", "x"],
    ):
        with pytest.raises(SystemExit):
            embeddings.main(arguments)
    errors = capsys.readouterr().err
    assert "lines needs --data and --work" in errors
    assert "quality needs folders" in errors


def test_results_are_measured_once():
    rows = [row for row in STORED if row["section"] == "lines"]
    keys = [key(row) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {key(row) for row in wanted("dense", None)} <= set(keys)
    for row in rows:
        if row["line"] == "dense" and row["runtime"] == PYTORCH:
            assert row["neighbors"] == 100
            assert all(abs(middle - 1) < 0.05 for middle, _, _ in (row["over_pytorch_32x32"], row["over_dense_32x32"]))


def test_tables_are_those_of_the_stored_results(tmp_path, monkeypatch):
    pages = {name: getattr(page, name).read_text(encoding="utf-8") for name in ("EMBEDDINGS", "README")}
    for name, text in pages.items():
        copy = tmp_path / f"{name}.md"
        copy.write_text(text, encoding="utf-8")
        monkeypatch.setattr(page, name, copy)
    page.write_embeddings()
    assert {name: (tmp_path / f"{name}.md").read_text(encoding="utf-8") for name in pages} == pages
