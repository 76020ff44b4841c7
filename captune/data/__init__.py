"""Samples, the JSON Lines manifest, importers of caption files, and image decoding.

Public names are imported on first use, so that scoring, which reads text only, does not import Pillow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.data.atomic import (
        atomic_file,
        atomic_folder,
        atomic_link,
        is_stream,
        partial_folder,
        remove_folder,
        temporary_folder,
    )
    from captune.data.checks import TargetFlaw, check_manifest
    from captune.data.cleaning import leaked_training_rows, rewrite_manifest, split_manifest
    from captune.data.content_hash import HASH_BYTES, cached_digest, content_ids, hash_file
    from captune.data.delimited import CsvWriter, plain_cell
    from captune.data.ids import SeenIds, id_text
    from captune.data.image_files import (
        ImageFolder,
        SkippedFiles,
        is_companion,
        is_unicode,
        name_as_text,
        raise_unreadable_folder,
    )
    from captune.data.image_formats import HEIF_SUFFIXES, MAX_PIXELS, is_image_name, too_many_scans
    from captune.data.images import (
        CLIP_MEAN,
        CLIP_STD,
        ImageInput,
        as_list,
        check_image,
        has_rotation,
        image_size,
        is_turned,
        load_image,
        read_image,
        reduced_image,
        to_pixels,
    )
    from captune.data.importing import Summary, prepare
    from captune.data.issues import NOTES, Issue, plural, printable
    from captune.data.locks import folder_lock, is_lock_file, last_writer
    from captune.data.manifest import (
        Sample,
        iter_manifest,
        manifest_hash,
        read_manifest,
        resolve_image,
        scan_manifest,
        write_manifest,
    )
    from captune.data.outputs import (
        RECORDS,
        check_output,
        check_output_folder,
        has_record,
        is_inside,
        is_own_output,
        output_file,
        output_note,
    )
    from captune.data.prefetch import prefetch_map
    from captune.data.rows import Row
    from captune.data.splits import SPLIT_NAMES, Shares, parse_shares, split_of_name
    from captune.data.tar_parquet import (
        MAX_MEMBER,
        InlineImages,
        bounded_batches,
        column_type,
        open_parquet,
        open_tar,
        too_large,
    )
    from captune.data.text_files import BYTE_ORDER_MARKS, SourceFile, text_lines
    from captune.data.text_history import (
        TextChange,
        apply_changes,
        history_path,
        read_history,
        read_text_file,
        text_path,
    )

__all__ = [
    "BYTE_ORDER_MARKS",
    "CLIP_MEAN",
    "CLIP_STD",
    "HASH_BYTES",
    "HEIF_SUFFIXES",
    "MAX_MEMBER",
    "MAX_PIXELS",
    "NOTES",
    "RECORDS",
    "SPLIT_NAMES",
    "CsvWriter",
    "ImageFolder",
    "ImageInput",
    "InlineImages",
    "Issue",
    "Row",
    "Sample",
    "SeenIds",
    "Shares",
    "SkippedFiles",
    "SourceFile",
    "Summary",
    "TargetFlaw",
    "TextChange",
    "apply_changes",
    "as_list",
    "atomic_file",
    "atomic_folder",
    "atomic_link",
    "bounded_batches",
    "cached_digest",
    "check_image",
    "check_manifest",
    "check_output",
    "check_output_folder",
    "column_type",
    "content_ids",
    "folder_lock",
    "has_record",
    "has_rotation",
    "hash_file",
    "history_path",
    "id_text",
    "image_size",
    "is_companion",
    "is_image_name",
    "is_inside",
    "is_lock_file",
    "is_own_output",
    "is_stream",
    "is_turned",
    "is_unicode",
    "iter_manifest",
    "last_writer",
    "leaked_training_rows",
    "load_image",
    "manifest_hash",
    "name_as_text",
    "open_parquet",
    "open_tar",
    "output_file",
    "output_note",
    "parse_shares",
    "partial_folder",
    "plain_cell",
    "plural",
    "prefetch_map",
    "prepare",
    "printable",
    "raise_unreadable_folder",
    "read_history",
    "read_image",
    "read_manifest",
    "read_text_file",
    "reduced_image",
    "remove_folder",
    "resolve_image",
    "rewrite_manifest",
    "scan_manifest",
    "split_manifest",
    "split_of_name",
    "temporary_folder",
    "text_lines",
    "text_path",
    "to_pixels",
    "too_large",
    "too_many_scans",
    "write_manifest",
]

__getattr__ = lazy_names(
    __name__,
    {
        "tar_parquet": [
            "MAX_MEMBER",
            "InlineImages",
            "bounded_batches",
            "column_type",
            "open_parquet",
            "open_tar",
            "too_large",
        ],
        "atomic": [
            "atomic_file",
            "atomic_folder",
            "atomic_link",
            "is_stream",
            "partial_folder",
            "remove_folder",
            "temporary_folder",
        ],
        "cleaning": ["leaked_training_rows", "rewrite_manifest", "split_manifest"],
        "checks": ["TargetFlaw", "check_manifest"],
        "content_hash": ["HASH_BYTES", "cached_digest", "content_ids", "hash_file"],
        "delimited": ["CsvWriter", "plain_cell"],
        "image_formats": ["HEIF_SUFFIXES", "MAX_PIXELS", "is_image_name", "too_many_scans"],
        "ids": ["SeenIds", "id_text"],
        "image_files": [
            "ImageFolder",
            "SkippedFiles",
            "is_companion",
            "is_unicode",
            "name_as_text",
            "raise_unreadable_folder",
        ],
        "images": [
            "CLIP_MEAN",
            "CLIP_STD",
            "ImageInput",
            "as_list",
            "check_image",
            "has_rotation",
            "image_size",
            "is_turned",
            "load_image",
            "read_image",
            "reduced_image",
            "to_pixels",
        ],
        "importing": ["Summary", "prepare"],
        "issues": ["NOTES", "Issue", "plural", "printable"],
        "locks": ["folder_lock", "is_lock_file", "last_writer"],
        "manifest": [
            "Sample",
            "iter_manifest",
            "manifest_hash",
            "read_manifest",
            "resolve_image",
            "scan_manifest",
            "write_manifest",
        ],
        "outputs": [
            "RECORDS",
            "check_output",
            "check_output_folder",
            "has_record",
            "is_inside",
            "is_own_output",
            "output_file",
            "output_note",
        ],
        "prefetch": ["prefetch_map"],
        "text_files": ["BYTE_ORDER_MARKS", "SourceFile", "text_lines"],
        "text_history": [
            "TextChange",
            "apply_changes",
            "history_path",
            "read_history",
            "read_text_file",
            "text_path",
        ],
        "rows": ["Row"],
        "splits": ["SPLIT_NAMES", "Shares", "parse_shares", "split_of_name"],
    },
)
