"""Parts of the command line: help that fits a terminal, hints at unknown options, the recipe
commands, error messages instead of tracebacks.
"""
