"""What a model would predict next from its residual stream, after each of its blocks.

A logit lens hands the stream of a block straight to the model's own tail: final norm, head and
soft cap. A tuned lens first maps it to where the stream after the last block would be, by one
affine map a layer that is fitted to activations of a cache.
"""
