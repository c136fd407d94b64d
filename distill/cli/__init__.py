"""What the command line needs beside its commands: help that fits a terminal, hints at options, the
recipe commands, faults as sentences.
"""
