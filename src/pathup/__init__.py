"""PathUp: class- and level-conditioned synthesis of large histopathology images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pathup.errors import PathUpError

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__version__ = "0.1.0"
__all__ = ["PathUpError", "PathUpPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the pipeline (and with it torch and diffusers) only when it is asked for."""
    if name == "PathUpPipeline":
        from pathup.model.pipeline import PathUpPipeline

        return PathUpPipeline
    raise AttributeError(f"module 'pathup' has no attribute {name!r}")
