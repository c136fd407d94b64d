"""Shards of many images, fetched as a run comes to them.

listing     a path -> the shards it names, in order, with their sample counts; hub: hf:// paths
counts      how many samples each shard holds
transport   bytes from anywhere: retries, resume, errors explained
cache       the shards that the processes of a machine share
tar, parquet   what a shard holds, and where
local       a shard as a file of this machine, read in any order, each record under its checksum
source      all of it as one `Source`
manifest    what `distill data shard` says of the shards that it wrote
"""
