"""What can be told from a model's activations, where, and whether the model uses it: probes."""
