"""Shards of many images, fetched while a run reads them.

opening        what a recipe says -> a source
listing        a path -> the shards it names, in order, with their sample counts
names, hub     braces, patterns, splits and container formats; hf:// paths
counts         how many samples each shard holds
manifest       what `distill data shard` records of the shards that it wrote
transport      bytes from anywhere: retries, resume, errors explained
web, filesystem, byte_stream, deadline   the ways there, and what they share
cache          files that the processes of a machine share; failures: records of failed tries
shard_fetcher  a listed shard -> an open one
tar, parquet   which samples a shard holds, and where they lie
local          a shard as a file of this machine: random access, a checksum for each record
source         all of it as one `Source`
prefetcher     fetches shards before they are needed
exiting        threads at the exit of the process
"""
