"""The list of runtimes that run a model."""

import pytest

import gating
from gating.serving.exporting import find_runtimes
from tests.serving.decoders import needs_layers
from tests.support.family_models import FAMILIES
from tests.support.tiers import first_of


def runtimes_of(model, place, **options):
    return {runtime.name: runtime for runtime in find_runtimes(model, place, **options)}


@pytest.mark.parametrize("name", first_of(["llama", "mistral", "qwen2", "qwen3"]))
def test_uneven_decoders_run_everywhere(name, tmp_path):
    needs_layers()
    model = FAMILIES[name].build()
    gating.prune_heads(model, {0: [0, 1], 1: range(8)})
    found = runtimes_of(model, tmp_path)
    assert all(runtime.command and not runtime.reason for runtime in found.values())
    assert found["llama.cpp"].command == f"head-gating export {tmp_path} --format gguf"
    assert found["vLLM"].command == f"head-gating export {tmp_path} --format vllm"


def test_other_models_have_a_reason(tmp_path):
    found = runtimes_of(FAMILIES["bert"].build(), tmp_path)
    assert found["ONNX Runtime"].command
    for name in ("llama.cpp", "vLLM"):
        assert not found[name].command
        assert found[name].reason.endswith("is not a decoder that writes text.")


def test_vllm_serves_a_stock_folder_as_it_is(tmp_path):
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {layer: range(4) for layer in range(3)})
    assert (
        runtimes_of(model, tmp_path, compact=tmp_path / "compact")["vLLM"].command == f"vllm serve {tmp_path}/compact"
    )


def test_exports_that_a_run_has_written_stand_in_place_of_their_commands(tmp_path):
    exports = {name: tmp_path / f"compact-{name}" for name in ("onnx", "onnx-int8", "openvino")}
    exports["onnx"].mkdir()
    exports["onnx-int8"].mkdir()
    found = runtimes_of(FAMILIES["bert"].build(), tmp_path, exports=exports)
    assert (found["ONNX Runtime"].command, found["ONNX Runtime"].exports) == ("", (*exports.values(),)[:2])
    # This one failed.
    assert (bool(found["OpenVINO"].command), found["OpenVINO"].exports) == (True, ())
