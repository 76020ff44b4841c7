"""Captions of large collections: shards in, one complete file a shard out, even when processes are killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.bulk.caption_template import CaptionTemplate, parse_template
    from captune.bulk.job import Job, JobIdentity, make_ids_unique
    from captune.bulk.output import COMMAND, Row, as_text, read_rows, write_rows
    from captune.bulk.ray_engine import Workers, run_with_ray
    from captune.bulk.shards import Entry, Item, ParquetShard, PathShard, Shard, TarShard
    from captune.bulk.sources import Inputs, read_inputs
    from captune.bulk.text_files import Existing, TextFiles, job_hash, shared_texts
    from captune.bulk.work import Captions, Progress, ShardResult, caption_entries, caption_shard, once, run_shards

__all__ = [
    "COMMAND",
    "CaptionTemplate",
    "Captions",
    "Entry",
    "Existing",
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
    "TextFiles",
    "Workers",
    "as_text",
    "caption_entries",
    "caption_shard",
    "job_hash",
    "make_ids_unique",
    "once",
    "parse_template",
    "read_inputs",
    "read_rows",
    "run_shards",
    "run_with_ray",
    "shared_texts",
    "write_rows",
]

__getattr__ = lazy_names(
    __name__,
    {
        "caption_template": ["CaptionTemplate", "parse_template"],
        "job": ["Job", "JobIdentity", "make_ids_unique"],
        "output": ["COMMAND", "Row", "as_text", "read_rows", "write_rows"],
        "ray_engine": ["Workers", "run_with_ray"],
        "shards": ["Entry", "Item", "ParquetShard", "PathShard", "Shard", "TarShard"],
        "sources": ["Inputs", "read_inputs"],
        "text_files": ["Existing", "TextFiles", "job_hash", "shared_texts"],
        "work": ["Captions", "Progress", "ShardResult", "caption_entries", "caption_shard", "once", "run_shards"],
    },
)
