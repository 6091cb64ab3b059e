"""The zoo: tiny random models of every supported family, from configurations alone.

All parameters are random, biases and tables of position biases too: parameters that a library sets to zero would hide
mistakes. Sizes are uneven on purpose (heads x head_dim need not be the hidden size where a family allows that).
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from gating.proof.probe import make_probe
from tests.support import single_models as single
from tests.support.more_family_models import HYBRID_MODELS, LATENT_MODELS, WITHOUT_KNOWN_NEURONS
from tests.support.multimodal_models import IDS, IMAGES, MULTIMODAL
from tests.support.single_models import GENERATING, SINGLE
from tests.support.versions import (
    OLDER,
    class_of_transformers,
    run_experts_on_cpu,
    skip_older_layout,
    skip_without_probe,
    with_token_types,
)

WIDER: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 48}
TEXT: dict[str, Any] = {**single.TEXT, **WIDER}
GROUPED: dict[str, Any] = {**TEXT, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
SEQ2SEQ: dict[str, Any] = {
    **single.SEQ2SEQ,
    "d_model": 64,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
T5: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 64,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
VISION: dict[str, Any] = {**IMAGES, **WIDER, "patch_size": 8}
AUDIO: dict[str, Any] = {**single.AUDIO, **WIDER, "conv_dim": (32, 32)}
TOWERS: dict[str, Any] = {
    "text_config": {**TEXT, "num_hidden_layers": 2, "projection_dim": 32},
    "vision_config": {**VISION, "num_hidden_layers": 2, "projection_dim": 32},
    "projection_dim": 32,
}


@dataclass(frozen=True)
class Family:
    """How to build a tiny model of a family.

    Attributes:
        model: Name of the transformers model class.
        config: Name of its configuration class.
        arguments: Arguments of the configuration.
        implementations: Attention implementations that are compared; that of the library alone if empty.
        generates: Whether ``generate`` is compared.
        static_cache: Whether the dense model generates with a static cache.
        std: Spread of the random parameters.
        has_neurons: Whether its feed-forward blocks are known.
    """

    model: str
    config: str
    arguments: dict[str, Any] = field(default_factory=dict)
    implementations: tuple[str, ...] = ("sdpa", "eager")
    generates: bool = False
    static_cache: bool = True
    std: float = 0.15
    has_neurons: bool = True

    def build(self, implementation: str | None = None, seed: int = 0) -> PreTrainedModel:
        """Build the model, in evaluation mode."""
        cls = class_of_transformers(self.model)
        # Older configurations take entries out of those in them.
        config = class_of_transformers(self.config)(**deepcopy(self.arguments))
        implementation = self._available(cls, implementation)
        options = {"attn_implementation": implementation} if implementation else {}
        model: PreTrainedModel = cls._from_config(config, **options)
        skip_older_layout(model)
        run_experts_on_cpu(model)
        return randomize(model.eval(), std=self.std, seed=seed)

    def _available(self, cls: type[PreTrainedModel], implementation: str | None) -> str | None:
        """Return the wanted implementation of attention, or the first one that this version of transformers has."""
        if OLDER and implementation == "sdpa" and not cls._supports_sdpa:
            pytest.skip(f"{cls.__name__} of transformers {transformers.__version__} has no sdpa")
        known = [x for x in self.implementations if x != "sdpa" or cls._supports_sdpa]
        return implementation or next(iter(known), None)

    def make_batch(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Return a batch that reaches all attention of a model."""
        skip_without_probe(model)
        if self.model != "Qwen2AudioForConditionalGeneration":
            return with_token_types(model, make_probe(model)) | _FURTHER_INPUTS.get(
                self.arguments.get("add_cross_attention"), {}
            )
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(3, 90, (2, 16), generator=generator)
        tokens[:, 2:10] = 90  # one for each vector of a sound
        masks = {
            "attention_mask": torch.ones_like(tokens),
            "feature_attention_mask": torch.ones(2, 32, dtype=torch.long),
        }
        return {"input_ids": tokens, "input_features": torch.randn(2, 8, 32, generator=generator), **masks}


# A decoder without an encoder skips its cross-attention otherwise.
_FURTHER_INPUTS = {True: {"encoder_hidden_states": torch.linspace(-2, 2, 2 * 5 * 64).reshape(2, 5, 64)}}


def randomize(model: PreTrainedModel, *, std: float, seed: int) -> PreTrainedModel:
    """Draw all parameters anew, in place; norm weights around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            if name.endswith("embed_positions.weight") and type(model).__name__.startswith("Marian"):
                continue  # a table of sines that transformers does not save
            is_norm_weight = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(noise + 1.0 if is_norm_weight else noise)
    return model


def _decoder(name: str, arguments: dict[str, Any], **options: Any) -> Family:
    return Family(f"{name}ForCausalLM", f"{name}Config", arguments, generates=True, **options)


def _encoder(name: str, arguments: dict[str, Any] = TEXT, **options: Any) -> Family:
    return Family(f"{name}ForSequenceClassification", f"{name}Config", arguments, **options)


def _seq2seq(name: str, arguments: dict[str, Any], model: str = "{}ForConditionalGeneration", **options: Any) -> Family:
    return Family(model.format(name), f"{name}Config", arguments, generates=True, **options)


def _classifier(name: str, arguments: dict[str, Any], kind: str = "Image", **options: Any) -> Family:
    return Family(f"{name}For{kind}Classification", f"{name}Config", arguments, **options)


FALCON = {**TEXT, "ffn_hidden_size": 48, "bias": True}
DEBERTA = {
    **TEXT,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "type_vocab_size": 0,
    "position_biased_input": False,
}
GPT2 = {"vocab_size": 99, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_inner": 48}

FAMILIES: dict[str, Family] = {
    "bert": _encoder("Bert"),
    "bert-decoder": Family("BertLMHeadModel", "BertConfig", {**TEXT, "is_decoder": True}, generates=True),
    "roberta": _encoder("Roberta"),
    "xlm-roberta": _encoder("XLMRoberta"),
    "camembert": _encoder("Camembert"),
    "electra": _encoder("Electra", {**TEXT, "embedding_size": 32}),
    "distilbert": _encoder(
        "DistilBert",
        {"vocab_size": 99, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    ),
    "albert": _encoder(
        "Albert", {**TEXT, "embedding_size": 32, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 1}
    ),
    "albert-1group": _encoder("Albert", {**TEXT, "embedding_size": 32, "num_hidden_groups": 1, "inner_group_num": 2}),
    "deberta-v2": _encoder("DebertaV2", {**DEBERTA, "share_att_key": True}, implementations=("eager",)),
    "deberta-v2-unshared": _encoder("DebertaV2", {**DEBERTA, "share_att_key": False}, implementations=("eager",)),
    "mpnet": _encoder("MPNet", implementations=("eager",)),
    "modernbert": _encoder("ModernBert", {**TEXT, "global_attn_every_n_layers": 2, "local_attention": 4}),
    "eurobert": _encoder("EuroBert", GROUPED),
    "nomic_bert": _encoder("NomicBert"),
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", {**GPT2, **IDS}, generates=True),
    "gpt2-cross": Family("GPT2LMHeadModel", "GPT2Config", {**GPT2, **IDS, "add_cross_attention": True}),
    "gpt_neox": _decoder("GPTNeoX", TEXT),
    "opt": _decoder("OPT", {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 64}),
    "llama": _decoder("Llama", GROUPED),
    "llama-mha": _decoder("Llama", {**TEXT, "attention_bias": True}),
    "mistral": _decoder("Mistral", {**GROUPED, "sliding_window": 6}),
    "qwen2": _decoder("Qwen2", GROUPED),
    "qwen3": _decoder("Qwen3", GROUPED),
    "gemma": _decoder("Gemma", {**TEXT, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": _decoder("Gemma2", {**GROUPED, "sliding_window": 6}, implementations=("eager",)),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **GROUPED,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        generates=True,
    ),
    "phi3": _decoder("Phi3", GROUPED),
    "falcon-new": _decoder("Falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-mq": _decoder("Falcon", {**FALCON, "multi_query": True, "new_decoder_architecture": False}),
    "falcon-rw-alibi": _decoder(
        "Falcon",
        {**FALCON, "multi_query": False, "new_decoder_architecture": False, "alibi": True},
        static_cache=False,
    ),
    "t5": _seq2seq("T5", T5),
    "bart": _seq2seq("Bart", SEQ2SEQ),
    "marian": _seq2seq("Marian", SEQ2SEQ, model="{}MTModel"),
    "mbart": _seq2seq("MBart", SEQ2SEQ),
    "whisper": _seq2seq(
        "Whisper", {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 32}
    ),
    "vit": _classifier("ViT", VISION),
    "deit": _classifier("DeiT", VISION),
    "dinov2": _classifier("Dinov2", {**VISION, "mlp_ratio": 1}),
    "beit": _classifier(
        "Beit", {**VISION, "use_relative_position_bias": True, "use_shared_relative_position_bias": True}
    ),
    "swin": _classifier(
        "Swin",
        {
            "image_size": 32,
            "patch_size": 2,
            "num_channels": 3,
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "mlp_ratio": 1.0,
        },
    ),
    "clip": Family("CLIPModel", "CLIPConfig", TOWERS),
    "siglip": Family("SiglipModel", "SiglipConfig", TOWERS),
    "blip": Family(
        "BlipForConditionalGeneration",
        "BlipConfig",
        {
            **TOWERS,
            "text_config": {
                **TOWERS["text_config"],
                "encoder_hidden_size": 64,
                "sep_token_id": 2,
                "is_decoder": True,
            },
        },
        implementations=("eager",),
        generates=True,
        static_cache=False,
    ),
    "wav2vec2": _classifier("Wav2Vec2", AUDIO, "Sequence"),
    "hubert": _classifier("Hubert", AUDIO, "Sequence"),
    "mt5": _seq2seq("MT5", T5),
    "umt5": _seq2seq("UMT5", T5),
    "gpt_oss": _decoder(
        "GptOss",
        {**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6},
        implementations=("eager",),
    ),
    "xglm": _decoder(
        "XGLM",
        {"vocab_size": 99, "d_model": 64, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48, **IDS},
        implementations=("eager",),
    ),
    "gptj": _decoder(
        "GPTJ",
        {**GPT2, **IDS, "rotary_dim": 4},
    ),
    "cohere": _decoder("Cohere", {**GROUPED, "use_qk_norm": True}),
    "phi": _decoder("Phi", {**TEXT, "num_attention_heads": 8, "num_key_value_heads": 4, "qk_layernorm": True}),
    "granite": _decoder("Granite", GROUPED),
    "starcoder2": _decoder("Starcoder2", {**GROUPED, "use_bias": True, "sliding_window": None}),
    "deberta": _encoder(
        "Deberta",
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
        implementations=("eager",),
    ),
    "ernie": _encoder("Ernie"),
    "t5gemma": _seq2seq(
        "T5Gemma", {"encoder": GROUPED, "decoder": GROUPED, "vocab_size": 99, **IDS}, implementations=("eager",)
    ),
    "pegasus": _seq2seq("Pegasus", SEQ2SEQ),
    "mvp": _seq2seq("Mvp", SEQ2SEQ, implementations=("eager",)),
    "mixtral": _decoder("Mixtral", {**GROUPED, "num_local_experts": 2}),
    "mimo_v2_flash": _decoder(
        "MiMoV2Flash",
        {
            **GROUPED,
            "v_head_dim": 12,
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "mlp_layer_types": ["dense"] * 3,
        },
        implementations=("eager",),
    ),
    "gpt_bigcode": _decoder("GPTBigCode", {**GPT2, **IDS}),
    "persimmon": _decoder("Persimmon", TEXT),
    "modernbert-decoder": _decoder("ModernBertDecoder", {**TEXT, "global_attn_every_n_layers": 2}),
    "dinov3": Family("DINOv3ViTModel", "DINOv3ViTConfig", VISION),
    "vit_mae": Family("ViTMAEModel", "ViTMAEConfig", VISION),
}
FAMILIES |= {
    name: Family(f"{prefix}ForCausalLM", config, {**TEXT, **arguments}, generates=True)
    for name, (prefix, config, arguments) in LATENT_MODELS.items()
}
FAMILIES |= {
    name: Family(
        f"{prefix}ForCausalLM",
        config,
        {**GROUPED, **arguments},
        generates=True,
        has_neurons=name not in WITHOUT_KNOWN_NEURONS,
    )
    for name, (prefix, config, arguments) in HYBRID_MODELS.items()
}
# All of them: those above, whose neurons are removed and whose implementations are compared as well, and others.
ZOO: dict[str, Family] = FAMILIES | {
    name: Family(*row, implementations=(), generates=name in GENERATING, has_neurons=False)
    for name, row in {**MULTIMODAL, **SINGLE}.items()
}
