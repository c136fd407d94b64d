"""Data before a run: what `distill data shard` and `distill data inspect` do.

commands   the two commands
named      what SOURCE names: a path, a URL, or a recipe's own data
plan       which sample goes into which shard: pure functions of source and options
records    an image as it is to be stored: as it is, or shrunk
container  a shard's file, tar or Parquet, written and read back
making     one shard: written, read back, put in its place
storage    the files behind it: what is there, what is being written, full disks
processes  this process's part, and the local processes that do it
shard      all of it, and the manifest at the end
progress   how far it is, for people
inspect    what a source holds, and how fast this machine reads it
sheet      a picture of images as student and teacher see them
"""
