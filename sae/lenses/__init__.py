"""What a model itself says of its hidden states, and of the features of a dictionary."""
