"""Models that are cut over several processes (FSDP2): how they are trained with gates, lose heads, and are gathered."""

from gating.sharding.copies import gather_model
from gating.sharding.gradients import average_gradients, clip_gradients
from gating.sharding.plan import is_sharded, reshard, shard_model, sharding_of
from gating.sharding.removal import finalize_sharded

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
