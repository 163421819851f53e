"""What every room needs: errors for people, files that are whole, progress, provenance."""

from sae.base.errors import UserError, nearest, require, require_at_least
from sae.base.files import (
    check_free_space,
    check_writable,
    free_space,
    locked,
    only_process,
    read_json,
    read_json_lines,
    write_json,
    write_text,
)
from sae.base.json_object import JsonObject, read_object, taken
from sae.base.progress import duration, progress, say, show, size
from sae.base.provenance import UNKNOWN, code_version, digest, digest_bytes, plain, versions
from sae.base.settings import check_idle, check_numbers
from sae.base.sums import (
    SUMS_FILE,
    check_folder,
    check_whole,
    damaged,
    is_whole,
    note,
    seal,
    sealed_path,
)
from sae.base.whole import (
    atomic_path,
    exchange,
    explained_failures,
    remove_unfinished,
    unfinished,
)

__all__ = [
    "SUMS_FILE",
    "UNKNOWN",
    "JsonObject",
    "UserError",
    "atomic_path",
    "check_folder",
    "check_free_space",
    "check_idle",
    "check_numbers",
    "check_whole",
    "check_writable",
    "code_version",
    "damaged",
    "digest",
    "digest_bytes",
    "duration",
    "exchange",
    "explained_failures",
    "free_space",
    "is_whole",
    "locked",
    "nearest",
    "note",
    "only_process",
    "plain",
    "progress",
    "read_json",
    "read_json_lines",
    "read_object",
    "remove_unfinished",
    "require",
    "require_at_least",
    "say",
    "seal",
    "sealed_path",
    "show",
    "size",
    "taken",
    "unfinished",
    "versions",
    "write_json",
    "write_text",
]
