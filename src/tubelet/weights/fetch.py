"""A hub id (`org/name`, or `org/name@revision`) becomes a local folder, by `huggingface_hub` and its cache."""

import re
from pathlib import Path

from tubelet.errors import CheckpointError, MissingExtraError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
WANTED = ["*.json", "*.safetensors", "*.bin", "*.pth", "*.pt"]


def is_hub_id(path: str | Path) -> bool:
    """Whether this can only be a hub id: spelled like one, and nothing of that name lies here."""
    return (
        HUB_ID.fullmatch(str(path)) is not None
        and not Path(path).exists()
        and Path(path).suffix not in (".pth", ".safetensors")
    )


def fetch(hub_id: str) -> tuple[Path, str]:
    """(the folder with the files of a hub id, its revision: the commit that the files are of).

    The newest where there is a network, else what the cache has. MissingExtraError without huggingface_hub; CheckpointError where
    neither has it.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise MissingExtraError("a hub id needs huggingface_hub: pip install 'tubelet[hf]'") from error
    name, _, revision = hub_id.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=WANTED))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(f"no model at {hub_id}: neither a path here, nor a model that the hub shows to you") from error
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"no model at {hub_id}: no such path here, not in the cache of huggingface_hub, and the hub cannot be reached; copy "
            "the model's files to a folder and name that"
        ) from error
    return folder, folder.name
