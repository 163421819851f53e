"""Why does the model say that: activation patching, attribution and path patching."""
