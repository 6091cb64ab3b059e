"""Models that are cut over several processes (FSDP2): how they are trained with gates, lose heads, and are gathered."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
