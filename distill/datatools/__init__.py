"""Data before a run: what `distill data shard` and `distill data inspect` do.

commands   the two commands
named      opens what SOURCE names: a path, a URL, or a recipe's own data
plan       which sample goes into which shard: pure functions of source and options
records    an image as it is stored: unchanged, or shrunk
container  a shard's file, tar or Parquet, written and read back
making     one shard: written, read back, renamed into place
storage    the files of the folder: records of finished shards, leftovers, disk errors
processes  this process's part, and the local processes that do it
shard      all shards, and the manifest at the end
progress   a bar or lines for people
look       reads some images, and measures how fast
inspect    what a source holds
sheet      a picture of images as student and teacher see them
"""
