"""A trained encoder: its weights, its features, what is asked of them, and the records of that."""
