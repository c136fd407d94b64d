"""Shards of many images, fetched as a run comes to them.

opening     what a recipe says -> a source
listing     a path -> the shards it names, in order, with their sample counts; names: patterns, splits, what may be shown; hub: hf:// paths
counts      how many samples each shard holds
manifest    what `distill data shard` says of the shards that it wrote
transport   bytes from anywhere: retries, resume, errors explained; web, filesystem: the ways there; body, deadline: what they share
cache       the shards that the processes of a machine share; locks, failures: how they agree
localise    a listed shard -> an open one; tar, parquet: what it holds, and where
local       a shard as a file of this machine, read in any order, each record under its checksum
source      all of it as one `Source`; ahead: fetched before it is needed; ending: threads at the interpreter's exit
"""
