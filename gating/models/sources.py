"""Sources of models, which ``conf/model`` names: pretrained, or new from a configuration."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from gating.loader.sharded import is_indivisible
from gating.models.hub import PACKAGE, is_gguf
from gating.models.new import NewModel
from gating.models.pretrained import Pretrained
from gating.sharding.plan import shard_model

__all__ = ["ModelSource", "NewModel", "Pretrained", "load_sharded", "short_name"]


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
