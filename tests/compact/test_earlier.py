"""Folders that an earlier commit saved load as they did then, with this package and by their own code.

They were saved on 2026-11-30, when the record became the difference from the dense model; they are not made again.
"""

import shutil
from pathlib import Path

import pytest
import torch
import transformers

import gating

EARLIER = Path(__file__).parent / "earlier"
HEADS = {
    "bert": [(1, 2, 3), (), (0, 1, 2, 3)],
    "llama": [(1, 2, 3, 4, 5, 6, 7), (), tuple(range(8))],
    "t5": [(1, 2, 3), (), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)],
}


@pytest.mark.parametrize("name", HEADS)
def test_a_folder_of_an_earlier_commit_is_loaded(name):
    model = gating.load_compact(EARLIER / name)
    assert [block.head_ids for block in gating.find_attention_blocks(model)] == HEADS[name]
    assert model.check_canary() < 1e-4


# The code of the others is left out of the repository.
def test_its_own_code_loads_it(tmp_path):
    # transformers names the module of the code after the folder.
    folder = shutil.copytree(EARLIER / "bert", tmp_path / "earlier-bert")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    assert model.check_canary() < 1e-4


def test_a_canary_tells_a_model_that_computes_something_else():
    model = gating.load_compact(EARLIER / "bert")
    with torch.no_grad():
        model.bert.pooler.dense.weight *= 1.5
    with pytest.raises(ValueError, match="other outputs"):
        model.check_canary()


def test_a_model_without_a_canary_says_so(tmp_path):
    model = gating.load_compact(EARLIER / "bert")
    model.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="BertForSequenceClassification"):
        gating.load_compact(tmp_path / "again").check_canary()
