"""Views of configurations, for modules that read head counts or kernels from them."""

from typing import Any

from .classes import part

__all__ = ["ConfigView"]


@part
class ConfigView:
    """A live view of a configuration with other values, for classes that read head counts or kernels from it."""

    def __init__(self, config: object, values: dict[str, object]) -> None:
        """Args: ``values`` are the attributes that differ; those of a ``config`` that is a view are dropped."""
        self._viewed: object = config._viewed if isinstance(config, ConfigView) else config
        # Plain attributes: torch.compile does not trace a __getattribute__ of our own.
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the configuration."""
        if name.startswith("__") or name == "_viewed":
            # While it is copied or unpickled, there is no configuration yet.
            raise AttributeError(name)
        return getattr(self._viewed, name)
