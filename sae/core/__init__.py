"""Pure tensor functions: no parameters, files, logging or configuration.

Letters in shapes, here and in every module above: `batch` activation vectors (rows),
`d_in` the width of the language model's stream, `d_sae` latents, `nnz` active entries.
"""
