"""Public names of sharding, imported when they are first used."""

from .copies import gather_model
from .plan import average_gradients, clip_gradients, is_sharded, reshard, shard_model, sharding_of
from .removal import finalize_sharded

__all__ = [
    "average_gradients",
    "clip_gradients",
    "finalize_sharded",
    "gather_model",
    "is_sharded",
    "reshard",
    "shard_model",
    "sharding_of",
]
