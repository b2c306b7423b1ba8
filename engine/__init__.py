"""What runs a training, or reads a trained encoder."""
