"""How faithful dictionaries are: to the activations, and to what the model makes of them."""
