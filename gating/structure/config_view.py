"""A module's view of the configuration, with other head counts than the model's."""

from typing import Any

__all__ = ["ConfigView"]


class ConfigView:
    """Read a configuration through, but for the given values.

    For attention classes whose ``forward`` reads head counts from ``self.config``. The view is live: what changes in
    the configuration later, such as the attention implementation, is seen.
    """

    def __init__(self, config: object, values: dict[str, object]) -> None:
        """Args: ``config`` may be a view itself, which is replaced then; ``values`` are what differs."""
        self._viewed: object = config._viewed if isinstance(config, ConfigView) else config
        # Plain attributes: torch.compile does not trace a __getattribute__ of our own.
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        """Look up what is not given here in the configuration."""
        if name.startswith("__") or name == "_viewed":
            # Asked while being copied or unpickled, before there is a configuration.
            raise AttributeError(name)
        return getattr(self._viewed, name)
