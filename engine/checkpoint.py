"""The place by which other code knows `load_encoder`; it lives in engine.run.checkpoint."""

from engine.run.checkpoint import load_encoder

__all__ = ["load_encoder"]
