"""The place by which other code knows `load_encoder`; it lives in engine.encoder.pretrained."""

from engine.encoder.pretrained import load_encoder

__all__ = ["load_encoder"]
