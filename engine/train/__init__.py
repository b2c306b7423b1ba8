"""A step, an epoch, and what is watched between epochs."""
