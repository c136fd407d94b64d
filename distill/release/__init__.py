"""`distill evaluate` and `distill export`: find finished weights, evaluate them, write them."""
