"""A world to measure in: Meta-World demonstrations, closed-loop evaluation, scenes to train a small teacher on."""
