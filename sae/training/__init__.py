"""Fitting an autoencoder to rows of activations: optimiser, loop, checkpoints, logs."""
