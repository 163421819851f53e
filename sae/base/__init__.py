"""What every room needs: errors for people, files that are whole, progress, provenance."""

from sae.base.errors import UserError, nearest, require, require_at_least
from sae.base.files import (
    atomic_path,
    check_free_space,
    check_writable,
    explained_failures,
    free_space,
    only_process,
    read_json,
    read_json_lines,
    remove_unfinished,
    write_json,
    write_text,
)
from sae.base.json_object import JsonObject, taken
from sae.base.progress import duration, progress, say, show, size
from sae.base.provenance import UNKNOWN, code_version, digest, digest_bytes, plain, versions
from sae.base.settings import check_idle, check_numbers

__all__ = [
    "UNKNOWN",
    "JsonObject",
    "UserError",
    "atomic_path",
    "check_free_space",
    "check_idle",
    "check_numbers",
    "check_writable",
    "code_version",
    "digest",
    "digest_bytes",
    "duration",
    "explained_failures",
    "free_space",
    "nearest",
    "only_process",
    "plain",
    "progress",
    "read_json",
    "read_json_lines",
    "remove_unfinished",
    "require",
    "require_at_least",
    "say",
    "show",
    "size",
    "taken",
    "versions",
    "write_json",
    "write_text",
]
