"""Train a small VGGT on rendered scenes with true geometry, and score any VGGT on them."""
