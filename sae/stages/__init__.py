"""The verbs: each stage reads its parent's artefact, writes its own, and can run alone."""
