"""How good models are on a set: accuracy over all processes, and sets as each model sees them."""
