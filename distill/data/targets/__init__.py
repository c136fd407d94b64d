"""A store of teacher outputs: one row for each position of an epoch.

- rows: logits as bytes and back
- shards: a file of rows, with its checksum
- store: the folder, its manifest, which shard holds which steps
"""

from distill.data.targets.rows import ALL, RowFormat
from distill.data.targets.shards import DamagedShardError
from distill.data.targets.store import (
    ShardKey,
    TargetStore,
    difference_lines,
    open_store,
    steps_per_shard,
    write_manifest,
)

__all__ = [
    "ALL",
    "DamagedShardError",
    "RowFormat",
    "ShardKey",
    "TargetStore",
    "difference_lines",
    "open_store",
    "steps_per_shard",
    "write_manifest",
]
