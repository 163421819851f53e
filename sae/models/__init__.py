"""The language model under study: loading it, naming its hooks, reading and editing there."""
