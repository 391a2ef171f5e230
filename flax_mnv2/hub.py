"""A folder or a Hugging Face hub id → a local folder."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence

from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import shown

_REVISION = re.compile(r"(?!.*\.\.)\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # branch, tag, commit, refs/pr/1; no path outside


def expand_user(path: str | pathlib.Path) -> pathlib.Path:
    """Returns ``path`` with ``~`` or ``~user`` replaced by the home folder; a CheckpointError where there is none."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise CheckpointError(
            f"{path} begins with a user's home folder, which cannot be found. For a name that begins with ~ write "
            f"./{path}."
        ) from None


def resolve_folder(
    id_or_folder: str | pathlib.Path,
    *,
    revision: str | None = None,
    cache_dir: str | pathlib.Path | None = None,
    files: Sequence[str],
) -> pathlib.Path:
    """Returns the local folder of a checkpoint, downloading ``files`` if a hub id is given.

    A folder of that name goes first; the files, of which no such folder lacks the first, are not looked for there.
    Downloads are huggingface_hub's: its cache and its ``HF_HUB_OFFLINE`` hold. They are anonymous: no token is read or
    sent, neither from the environment nor a stored one, and no usage data. Download a private model with
    huggingface_hub's own command, and give the folder.

    Raises:
      CheckpointError: no such folder, and not a hub id that can be had.
    """
    folder = expand_user(id_or_folder)
    name = shown(str(id_or_folder))[1:-1]  # without quotes; of a name that is no text, what stands for its characters
    try:
        if folder.is_dir():
            return folder
        exists = folder.exists()
    except (OSError, ValueError) as error:  # not ours to look into, too long, or not a path at all
        raise CheckpointError(
            f"Cannot look for the folder {name}: {getattr(error, 'strerror', None) or error}."
        ) from None
    if exists:
        raise CheckpointError(f"{name} is a file; expected the folder that holds {files[0]}.")
    if revision is not None and not _REVISION.fullmatch(str(revision)):
        raise CheckpointError(f"revision must be a branch, a tag or a commit, such as 'main'; found {shown(revision)}.")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(str(id_or_folder))
    except HFValidationError:
        raise CheckpointError(
            f"No folder {name}; expected one with {files[0]}, or a hub id of the form owner/name "
            "(letters, digits, '.', '_' and '-')."
        ) from None
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, cache_dir=cache_dir, allow_patterns=list(files), token=False
            )
        )
    except Exception as error:  # many types, from the network to the cache; the message must be one
        offline = "; HF_HUB_OFFLINE is set, so only its cache was looked at" if HF_HUB_OFFLINE else ""
        raise CheckpointError(
            f"{name!r}{f' at revision {revision!r}' if revision else ''} is no local folder and could not be "
            f"downloaded from the Hugging Face hub ({type(error).__name__}){offline}. Check the spelling and the "
            f"network, or give a local folder with {files[0]}."
        ) from None
