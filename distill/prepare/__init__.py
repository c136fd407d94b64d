"""Data before a run: what `distill data shard` and `distill data inspect` do.

commands   the two commands
named      what SOURCE names: a path, a URL, or a recipe's own data
plan       which sample goes into which shard: pure functions of source and options
records    an image as it is to be stored: as it is, or shrunk
container  a shard's file, tar or Parquet, written and read back
shard      a source into shards: resumable, on any number of processes
progress   how far it is, for people
inspect    what a source holds, and how fast this machine reads it
sheet      a picture of images as student and teacher see them
"""
