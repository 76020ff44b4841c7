"""Captions of large collections: shards in, one complete file a shard out, even when processes are killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.bulk.job import Job, JobIdentity, make_ids_unique
    from captune.bulk.output import (
        COMMAND,
        FORMATS,
        Row,
        as_text,
        has_text,
        read_rows,
        shared_texts,
        write_rows,
        write_texts,
    )
    from captune.bulk.ray_engine import Workers, run_with_ray
    from captune.bulk.shards import Entry, Item, ParquetShard, PathShard, Shard, TarShard
    from captune.bulk.sources import Inputs, read_inputs
    from captune.bulk.work import Captions, Progress, ShardResult, caption_entries, caption_shard, once, run_shards

__all__ = [
    "COMMAND",
    "FORMATS",
    "Captions",
    "Entry",
    "Inputs",
    "Item",
    "Job",
    "JobIdentity",
    "ParquetShard",
    "PathShard",
    "Progress",
    "Row",
    "Shard",
    "ShardResult",
    "TarShard",
    "Workers",
    "as_text",
    "caption_entries",
    "caption_shard",
    "has_text",
    "make_ids_unique",
    "once",
    "read_inputs",
    "read_rows",
    "run_shards",
    "run_with_ray",
    "shared_texts",
    "write_rows",
    "write_texts",
]

__getattr__ = lazy_names(
    __name__,
    {
        "job": ["Job", "JobIdentity", "make_ids_unique"],
        "output": [
            "COMMAND",
            "FORMATS",
            "Row",
            "as_text",
            "has_text",
            "read_rows",
            "shared_texts",
            "write_rows",
            "write_texts",
        ],
        "ray_engine": ["Workers", "run_with_ray"],
        "shards": ["Entry", "Item", "ParquetShard", "PathShard", "Shard", "TarShard"],
        "sources": ["Inputs", "read_inputs"],
        "work": ["Captions", "Progress", "ShardResult", "caption_entries", "caption_shard", "once", "run_shards"],
    },
)
