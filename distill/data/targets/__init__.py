"""A store of teacher outputs: one row for each position of an epoch.

- rows: logits as bytes and back
- shards: a file of rows, with its checksum
- draws: classes drawn from the tail of a distribution
- compare: stored rows with those of the live teacher
- store: the folder, its manifest, which shard holds which steps
"""

from distill.data.targets.compare import Gaps, gaps
from distill.data.targets.draws import draw_keys
from distill.data.targets.rows import ALL, PRE_LOGITS, Keep, RowFormat
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
    "PRE_LOGITS",
    "DamagedShardError",
    "Gaps",
    "Keep",
    "RowFormat",
    "ShardKey",
    "TargetStore",
    "difference_lines",
    "draw_keys",
    "gaps",
    "open_store",
    "steps_per_shard",
    "write_manifest",
]
