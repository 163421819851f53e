"""An exported folder on the Hugging Face Hub: a model, and its tables as a data set.

Both have the same name, since the Hub keeps models and data sets apart: the model repository is
the folder, the data set the tables and the card, so that `load_dataset("ORG/NAME", "features")`
works. Each is made the folder's mirror in one commit.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae.base import UserError, require
from sae.exchange.stamp import CARD_FILE, STAMP_FILE, Stamp, read_stamp, spoken

TABLES = (CARD_FILE, "*.parquet", "*.csv", STAMP_FILE)
"""What the data set has of the folder."""
# What the Hub takes, as `huggingface_hub.utils.validate_repo_id` has it.
_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]{,94}\w)?", re.ASCII)
# A new repository has these before anybody has put something into it.
_FROM_THE_HUB = {".gitattributes", CARD_FILE}
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        UserError: if it is none.
    """
    require(
        _ID.fullmatch(name) is not None,
        f"push={name} is not the name of a repository; give ORG/NAME, as in "
        "push=me/my-dictionary",
    )


def check_can_push(repository: str) -> None:
    """Refuse, before any work, what could never arrive.

    Raises:
        UserError: if the Hub is switched off, or there is no token.
    """
    from huggingface_hub import constants, get_token

    require(
        not constants.HF_HUB_OFFLINE,
        f"push={repository}, but the Hub is switched off here; unset HF_HUB_OFFLINE",
    )
    require(bool(get_token()), f"push={repository} needs a token for the Hub; {_LOGIN}")


def push(folder: Path, repository: str, *, private: bool) -> None:
    """Make model and data set `repository` mirrors of an export, creating them if needed.

    What they hold is replaced if it is an export of the same dictionary. If not `private`,
    what is created is so by the organisation's default.

    Raises:
        UserError: if a repository is something else's, or cannot be reached or written to.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    kinds: dict[str, list[str] | None] = {"model": None, "dataset": list(TABLES)}
    with _in_a_sentence(repository, folder):
        for kind in kinds:
            api.create_repo(repository, repo_type=kind, private=private or None, exist_ok=True)
            _check_ours(api, repository, kind, read_stamp(folder / STAMP_FILE))
        for kind, patterns in kinds.items():
            api.upload_folder(
                repo_id=repository,
                repo_type=kind,
                folder_path=folder,
                allow_patterns=patterns,
                delete_patterns="*",
                commit_message="Export of sae-atlas",
            )


def _check_ours(api: Any, repository: str, kind: str, wanted: Stamp | None) -> None:
    there = set(api.list_repo_files(repository, repo_type=kind)) - _FROM_THE_HUB
    if not there:
        return
    what = f"push={repository}: the {kind} of that name holds"
    stamp = _stamp(api, repository, kind) if STAMP_FILE in there else None
    if stamp is None:
        some = ", ".join(sorted(there)[:3])
        raise UserError(f"{what} something that is no export ({some}); choose another name")
    require(
        wanted is not None and stamp.of == wanted.of,
        f"{what} the export of another dictionary, {spoken(stamp.of)}; choose another name",
    )
    others = sorted(there - set(stamp.files) - {STAMP_FILE})
    require(
        not others,
        f"{what} {', '.join(others[:3])} beside the export; remove that there, or choose "
        "another name",
    )


def _stamp(api: Any, repository: str, kind: str) -> Stamp | None:
    with tempfile.TemporaryDirectory() as scratch:
        path = api.hf_hub_download(repository, STAMP_FILE, repo_type=kind, local_dir=scratch)
        return read_stamp(Path(path))


@contextmanager
def _in_a_sentence(repository: str, folder: Path) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    # Its base is that of the HTTP library, from which what becomes of the connection comes too.
    http_error: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, http_error) as error:
        raise UserError(
            f"{_reason(repository, error)}; {folder} is kept, and the same command continues"
        ) from error


def _reason(repository: str, error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    # What goes wrong while a file is on its way is a RuntimeError's cause.
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(error).split())
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return f"the Hub does not accept your token for push={repository}; {_LOGIN}"
    if status == 403:
        return (
            f"the Hub does not let you write to push={repository}; choose another name, or a "
            "token that may write there"
        )
    if status is not None:
        return f"the Hub refused push={repository}: {said}"
    return f"push={repository} did not reach the Hub: {said}"
