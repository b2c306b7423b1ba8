"""Encoders, the memory bank, and the contrastive model over them."""
