"""Put a saved model onto the Hugging Face hub, when a user asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ftscale.base.errors import UserError, counted
from ftscale.base.logs import setup_logging
from ftscale.run.folder import run_id
from ftscale.run.model_card import CARD

CONFIGS = ("config.json", "adapter_config.json")
"""One of which every model has."""


def push(folder: Path, repository: str, *, public: bool = False, dry_run: bool = False) -> Iterator[str]:
    """Upload the model of a finished run, or of a folder that `export` wrote; says what is done.

    `repository`: OWNER/NAME; one that is not there yet is made, private but for `public`. What is there stays, but for
    files of the same names. `dry_run`: say what would be uploaded, without a network. Links are left out: what they
    lead to may be no part of the model. Raises UserError: no model there; a bad name; what the hub answers.
    """
    setup_logging()
    model = _model_folder(folder)
    _check_name(repository)
    files = sorted(path for path in _files(model))
    size = sum(path.stat().st_size for path in files)
    names = [path.relative_to(model).as_posix() for path in files]
    if CARD not in names:
        yield f"{model} has no {CARD}: the hub will say nothing of the model."
    kind = "public" if public else "private"
    if dry_run:
        yield from (f"{path.stat().st_size:>14,}  {name}" for path, name in zip(files, names, strict=True))
        told = f"{counted(len(files), 'file')} of {size / 2**20:.1f} MiB"
        yield f"{told} would be uploaded to {repository} ({kind}, if it is new); nothing was sent."
        return
    yield _upload(model, names, repository, public=public)


def _model_folder(folder: Path) -> Path:
    """The folder itself or, of a run, that of its model."""
    is_run = run_id(folder) is not None
    model = folder / "model" if is_run else folder
    if not any((model / name).is_file() for name in CONFIGS):
        fix = "train it to its end" if is_run else "name a run folder, or one that ftscale export wrote"
        raise UserError(f"FOLDER = {folder} holds no model (no {' or '.join(CONFIGS)} in {model}); {fix}.")
    return model


def _files(folder: Path) -> Iterator[Path]:
    """Plain files of the folder and of those in it; nothing that a link leads to, nothing hidden."""
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if path.is_symlink() or name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _check_name(repository: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"REPOSITORY = {repository!r} is no name of the hub: {error} Write OWNER/NAME.") from error
    if repository.count("/") != 1:
        raise UserError(f"REPOSITORY = {repository!r} does not say whose it is; write OWNER/NAME.")


def _upload(model: Path, names: list[str], repository: str, *, public: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    hub = HfApi()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repository,
            folder_path=model,
            allow_patterns=[plain(name) for name in names],
            commit_message="Upload a model fine-tuned by ftscale",
        )
    except LocalTokenNotFoundError as error:
        raise UserError("the hub needs to know who asks; run `hf auth login`, or set HF_TOKEN.") from error
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, or look at --dry-run.") from error
    except HfHubHTTPError as error:
        raise UserError(f"the hub refuses the upload to {repository}: {error}") from error
    except OSError as error:
        raise UserError(f"the upload to {repository} failed: {error}; give the command again to go on.") from error
    return f"uploaded to {done}"


def plain(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
