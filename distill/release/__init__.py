"""`distill evaluate`, `average`, `export`, `publish`: find finished weights, evaluate them, write
them and publish them.
"""
