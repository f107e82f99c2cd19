"""The folder that goes to the Hugging Face hub, and its upload, which nothing does unasked."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.errors import ServingError
from luthier.models.libraries import quiet_libraries
from luthier.models.sources import TOKENIZER_FILES
from luthier.models.weights import INDEX_NAME
from luthier.serving.bundle import HUB_FOLDER, README_NAME, RUN_NAME
from luthier.serving.vllm import copy_atomically
from luthier.store.files import entries_below, temporary_path, write_atomically
from luthier.store.keys import MEASURED_FOLDER

ATTRIBUTES_NAME = ".gitattributes"
_COPIED = (INDEX_NAME, "config.json", "generation_config.json", *TOKENIZER_FILES)
_WEIGHTS = "*.safetensors"
# The hub takes no larger file into plain git
# (https://huggingface.co/docs/hub/repositories-getting-started, 2026-11).
_LARGEST_PLAIN_BYTES = 10_000_000
_LFS = "filter=lfs diff=lfs merge=lfs -text"  # as `git lfs track` writes it


@dataclass(frozen=True)
class Upload:
    """What would go to the hub: the repository, and its files as `(path, bytes)`."""

    repo: str
    is_private: bool
    files: tuple[tuple[str, int], ...]

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(size for _, size in self.files)


def write_hub_folder(folder: Path, model_folder: Path) -> None:
    """Fill `folder` from the one that vLLM serves: weights, config, tokenizer, template.

    Weights are hard links where the file system has them, so that they are on the disk once. The
    card, README.md, comes with the other documents. A folder that stands is completed.
    """
    folder.mkdir(exist_ok=True)
    for weights in sorted(model_folder.glob(_WEIGHTS)):
        link_or_copy(weights, folder / weights.name)
    for name in _COPIED:
        if (model_folder / name).exists():
            (folder / name).unlink(missing_ok=True)
            copy_atomically(model_folder / name, folder / name)
    write_atomically(folder / ATTRIBUTES_NAME, _attributes(folder))


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or where that cannot be, a copy; `target` is replaced whole."""
    if target.exists() and target.samefile(source):
        return
    partial = temporary_path(target)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # another file system, or one without hard links
        target.unlink(missing_ok=True)
        copy_atomically(source, target)
        return
    partial.replace(target)


def _attributes(folder: Path) -> str:
    """What git keeps as LFS: all weights, and whatever else is too large for plain git."""
    large = [
        path.name
        for path in sorted(folder.iterdir())
        if path.stat().st_size > _LARGEST_PLAIN_BYTES and not path.match(_WEIGHTS)
    ]
    return "".join(f"{pattern} {_LFS}\n" for pattern in (_WEIGHTS, *large))


def planned_upload(bundle: Path, repo: str, *, is_private: bool) -> Upload:
    """What `upload` would send of a bundle.

    Raises:
        ServingError: the bundle has no hub folder, or `repo` cannot be a repository.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    folder = bundle / HUB_FOLDER
    if not (folder / README_NAME).is_file():
        raise ServingError(
            f"{bundle} has no folder {HUB_FOLDER}/. Add hub to export.targets and export again."
        )
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ServingError(f"--repo {repo}: {error}") from error
    if "/" not in repo:
        raise ServingError(f"--repo {repo}: say whose it is to be: OWNER/{repo}.")
    with _as_sent(bundle) as sent:
        files = tuple(
            (path.relative_to(sent).as_posix(), path.stat().st_size)
            for path in sorted(sent.iterdir())
        )
    return Upload(repo, is_private, files)


def upload(bundle: Path, planned: Upload, message: str) -> str:
    """Make the repository if it is not there, and send the files; the address of the commit.

    The card gets the record of the run at its end. The token is huggingface_hub's: `HF_TOKEN`, or
    the one that `hf auth login` keeps.

    Raises:
        ServingError: no way to the hub, no permission, or the hub refuses something.
    """
    quiet_libraries()
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="luthier")
    try:
        api.create_repo(planned.repo, private=planned.is_private or None, exist_ok=True)
        with _as_sent(bundle) as sent:
            commit = api.upload_folder(
                repo_id=planned.repo, folder_path=sent, commit_message=message
            )
    except HfHubHTTPError as error:
        raise ServingError(_refused(planned.repo, error)) from error
    except (HTTPError, OSError, ValueError) as error:
        raise ServingError(
            f"{planned.repo} was not uploaded: {type(error).__name__}: {error} "
            "Without a network, upload the folder hub/ from elsewhere."
        ) from error
    return str(commit.commit_url)


def _refused(repo: str, error: Exception) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    hint = "Look at the message, and try again."
    if status in (401, 403):
        hint = "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write there."
    return f"The hub refused {repo} ({status}): {str(error).strip().splitlines()[0]} {hint}"


@contextmanager
def _as_sent(bundle: Path) -> Iterator[Path]:
    """`hub/` with the record of the run at the end of its card, by links, as it is sent."""
    with TemporaryDirectory(prefix="luthier-upload-") as name:
        sent = Path(name)
        for path in entries_below(bundle / HUB_FOLDER):
            (sent / path.name).symlink_to(path.resolve())
        (sent / README_NAME).unlink()
        shutil.copyfile(bundle / HUB_FOLDER / README_NAME, sent / README_NAME)
        record = bundle / MEASURED_FOLDER / RUN_NAME
        if record.exists():
            with (sent / README_NAME).open("a", encoding="utf-8") as card:
                card.write("\n" + record.read_text("utf-8"))
        yield sent
