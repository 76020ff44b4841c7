"""Captions of large collections: shards in, one complete file a shard out, even when processes are killed."""

from __future__ import annotations

from captune.bulk.job import Job, JobIdentity, make_ids_unique
from captune.bulk.output import FORMATS
from captune.bulk.shards import ParquetShard, PathShard, Shard, TarShard
from captune.bulk.sources import Inputs, read_inputs
from captune.bulk.work import Progress, ShardResult, caption_shard, run_shards

__all__ = [
    "FORMATS",
    "Inputs",
    "Job",
    "JobIdentity",
    "ParquetShard",
    "PathShard",
    "Progress",
    "Shard",
    "ShardResult",
    "TarShard",
    "caption_shard",
    "make_ids_unique",
    "read_inputs",
    "run_shards",
]
