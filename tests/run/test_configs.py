"""Every file of conf/ composes, passes the validation of settings, and describes objects that can be built."""

import pytest

import gating
from gating.run.build import build_objects
from gating.run.settings import read_settings
from tests.support.tiers import first_of
from tests.support.tiny_run import ROOT, checked_settings, compose_settings

GROUPS = (
    "model",
    "data",
    "gates",
    "adapters",
    "objective",
    "optimizer",
    "scheduler",
    "trainer",
    "callbacks",
    "logger",
    "debug",
)
NEEDED = {
    "pretrained": ["model.name=x"],
    "scratch": ["model.model_type=vit"],
    "image_classification": ["data=digits"],
    "glue": ["data.name=sst2"],
    "hub": ["data.path=x"],
    "files": ["data.train=x", "data.validation=x"],
    "multi30k": ["task=seq2seq"],
    "pairs": ["task=seq2seq", "data.train=x", "data.validation=x"],
    "sentences": ["task=embedding", "data.train=x"],
    "bbc_sentences": ["task=embedding"],
    "text": ["task=causal_lm", "data.train=x"],
}
OPTIONS = [
    case
    for group in (*GROUPS, "experiment", "task", "paths")
    # Batches are a part of the others.
    for case in first_of(
        (group, path.stem) for path in sorted((ROOT / "conf" / group).glob("*.yaml")) if path.stem != "batches"
    )
]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes_and_passes_the_check(group, option):
    settings = checked_settings([f"{group}={option}", *NEEDED.get(option, [])])
    assert settings["trainer"]["_target_"] == "pytorch_lightning.Trainer"


def objective_of(*given):
    return build_objects(read_settings(compose_settings(list(given)))).objective


@pytest.mark.parametrize(
    ("option", "kind", "ranking"),
    [
        ("budget", gating.ExactBudget, None),
        ("lagrangian", gating.Lagrangian, None),
        ("topk", gating.TopK, None),
        ("deterministic", gating.DeterministicBudget, gating.Fisher),
        ("importance", gating.IterativePruning, gating.Importance),
        ("fisher", gating.IterativePruning, gating.Fisher),
        ("magnitude", gating.IterativePruning, gating.Magnitude),
        ("random", gating.IterativePruning, gating.RandomOrder),
    ],
)
def test_files_of_methods_build_the_classes_that_they_describe(option, kind, ranking):
    objective = objective_of(f"objective={option}", "objective.num_heads=18")
    assert type(objective) is kind
    assert ranking is None or type(objective.ranking) is ranking


def test_a_price_and_no_objective():
    assert isinstance(objective_of("objective=l0"), gating.FixedPrice)
    assert objective_of("objective=none") is None
