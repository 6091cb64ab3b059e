"""The table of formats: options, packages, and the command."""

import sys
from pkgutil import resolve_name

import pytest

import gating
from gating import __main__ as command_line
from gating.serving import formats
from tests.serving.decoders import make_decoder, make_tokenizer, remove


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    model = make_decoder("Llama")
    remove(model, {0: [1], 2: [0, 2, 3]})
    return gating.save_compact(model, tmp_path_factory.mktemp("model") / "compact", tokenizer=make_tokenizer())


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["head-gating", *map(str, arguments)])
    return command_line.main()


def test_unknown_formats_and_options_are_errors(compact, tmp_path):
    with pytest.raises(ValueError, match=r"tflite.*: give one of onnx, openvino, gguf"):
        gating.export_compact(compact, tmp_path / "new", format="tflite")
    with pytest.raises(ValueError, match=r"format='vllm' has no option int8"):
        gating.export_compact(compact, tmp_path / "new", format="vllm", int8=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("gguf", "gguf", "gguf"), ("openvino", "openvino", "openvino"), ("onnx", "onnx", "onnx")],
)
def test_missing_packages_are_named_with_their_extra(format, package, extra, compact, tmp_path, monkeypatch):
    module = package.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)  # An import of it fails.
    with pytest.raises(ImportError, match=rf"package {package} is needed: .*'head-gating\[{extra}\]'"):
        gating.export_compact(compact, tmp_path / "new", format=format)


def test_every_row_names_a_function_with_its_options():
    pytest.importorskip("gguf", reason="the packages of the exports are not installed")
    for row in formats.FORMATS.values():
        accepted = resolve_name(row.exporter).__kwdefaults__.keys()
        assert {*row.options, "overwrite"} <= accepted, row


def test_the_command_exports_and_prints_the_check(compact, monkeypatch, capsys):
    pytest.importorskip("xllamacpp", reason="the package xllamacpp, llama.cpp, is not installed")
    run(monkeypatch, "export", compact, "--format", "gguf", "--dtype", "f32")
    printed = capsys.readouterr().out
    assert f"{compact}.gguf: " in printed
    assert "Checked in llama.cpp: all 200 greedy tokens are the model's own" in printed
    assert f"llama-server -m {compact}.gguf" in printed
    with pytest.raises(SystemExit, match=r"exists already.*--overwrite.*, which renames it"):
        run(monkeypatch, "export", compact, "--format", "gguf")


def test_the_command_names_options_of_its_own_in_remedies(compact, tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    model = gating.load_compact(compact)
    folder = gating.save_compact(model, tmp_path / "other", tokenizer=make_tokenizer(regex=".+"))
    with pytest.raises(SystemExit, match=r"\(--tokenizer-from\) with a GGUF file of the dense model"):
        run(monkeypatch, "export", folder, "--format", "gguf")


def test_help_lists_the_formats(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "export", "--help")
    printed = capsys.readouterr().out
    for name, row in formats.FORMATS.items():
        assert f"  {name:12}{row.summary}" in printed
