"""Count the heads that an objective keeps."""

__all__ = ["num_kept"]


def num_kept(gates, objective):
    """Return the number of heads that the objective's kept gates stand for."""
    kept = objective.kept(gates).tolist()
    return sum(heads for heads, is_kept in zip(gates.heads_per_gate, kept, strict=True) if is_kept)
