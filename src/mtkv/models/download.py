"""Fetch the models of a study once, on a machine with network; afterwards the study runs offline.

In: the configs of all its models. Out: hub models in `assets/models`, GGUF files converted there, and a manifest with commits and sizes.
A revision is resolved to a commit first, so that all files are of one commit; an interrupted download goes on where it stopped; a model
that cannot be had does not keep the others from being fetched. `HF_ENDPOINT` names a mirror of the Hugging Face hub.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, errors, snapshot_download

from mtkv.config.models import ModelConfig
from mtkv.models.integrity import check_weights
from mtkv.models.load import load_tokenizer, model_folder
from mtkv.models.paths import MAIN, card_path, content_digest, hub_folder, read_card
from mtkv.provenance.files import check_room, disk_full, is_disk_full, write_json

HUB = "https://huggingface.co"
TEXTS = (".json", ".jinja", ".txt", ".model", ".py", ".md")
FOLDERS = ("", "additional_chat_templates")
Sizes = dict[str, int]


def fetch(config: ModelConfig) -> Path:
    """Fetch one hub model and return its folder; a complete one is not fetched again (delete its card to force it).

    Raises PermissionError for a gated or private model, FileNotFoundError for a name or revision the hub does not have, ConnectionError
    when the hub cannot be reached and DiskFullError when there is no room. Each message says what to do.
    """
    folder = hub_folder(config)
    if read_card(folder) is not None:
        return folder
    with _online(), _explained(config, folder):
        info = HfApi(endpoint=_endpoint()).model_info(
            config.name, revision=config.revision or MAIN, files_metadata=True
        )
        sizes = wanted_files({file.rfilename: file.size or 0 for file in info.siblings or []})
        partial = folder.with_name(f".{folder.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        have = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        check_room(folder, max(0, sum(sizes.values()) - have))
        snapshot_download(
            config.name, revision=info.sha, local_dir=partial, allow_patterns=list(sizes), endpoint=_endpoint()
        )
        _check_complete(partial, sizes)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    write_json(card_path(folder), _facts(config, info, sizes))
    return folder


def wanted_files(sizes: Sizes) -> Sizes:
    """Of all files of a repository, with sizes, those that transformers needs: weights in one format, configs and tokenizer."""
    here = {name: size for name, size in sizes.items() if name.rpartition("/")[0] in FOLDERS}
    weights = [name for name in here if name.endswith(".safetensors") and not name.startswith("consolidated")]
    weights = weights or [name for name in here if name.startswith("pytorch_model") and name.endswith(".bin")]
    return {name: size for name, size in here.items() if name in weights or name.endswith(TEXTS)}


def _facts(config: ModelConfig, info: Any, sizes: Sizes) -> dict[str, Any]:
    return {
        "source": "hub",
        "name": config.name,
        "revision": config.revision,
        "commit": info.sha,
        "files": sizes,
        "bytes": sum(sizes.values()),
        "endpoint": _endpoint() or HUB,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check_complete(folder: Path, sizes: Sizes) -> None:
    """Raises ConnectionError for missing or short files: huggingface_hub returns such a folder when the hub stops answering half way."""
    wrong = [name for name, size in sizes.items() if not _has(folder / name, size)]
    if wrong:
        raise ConnectionError(f"the download stopped early: {', '.join(wrong[:3])} not complete; run it again to go on")


def _has(path: Path, size: int) -> bool:
    return path.is_file() and (size == 0 or path.stat().st_size == size)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _online() -> Iterator[None]:
    """Context manager: inside, HF_HUB_OFFLINE, which the Makefile sets for everything else, is ignored."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _explained(config: ModelConfig, folder: Path) -> Iterator[None]:
    """Context manager: inside, an error of the hub is raised anew with one sentence that says what to do."""
    try:
        yield
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise _in_a_sentence(config, error) from error
    except Exception as error:
        if is_disk_full(error) and not isinstance(error, PermissionError):
            raise error if error.args[1:] else disk_full(folder) from error
        if isinstance(error, ConnectionError | FileNotFoundError) and not isinstance(
            error, errors.LocalEntryNotFoundError
        ):
            raise
        raise _in_a_sentence(config, error) from error


def _in_a_sentence(config: ModelConfig, error: Exception) -> OSError:
    page, endpoint = f"{HUB}/{config.name}", _endpoint()
    if isinstance(error, errors.GatedRepoError):  # first: a subclass of the error for a missing model
        return PermissionError(
            f"{config.name} asks you to accept its licence: open {page}, accept it, then run `hf auth login` "
            "(or set HF_TOKEN) and `snakemake assets` again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        try:
            refs = HfApi(endpoint=endpoint).list_repo_refs(config.name)
            there = ", ".join(ref.name for ref in [*refs.branches, *refs.tags])
        except Exception:
            there = f"see {page}/tree/{MAIN}"
        return FileNotFoundError(f"{config.name} has no revision {config.revision!r}; there are: {there}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{config.name} is not on {endpoint or HUB}, or is private: check the name on {page}; for a private model "
            "run `hf auth login` (or set HF_TOKEN) first"
        )
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return ConnectionError(
        f"{config.name} could not be fetched from {endpoint or HUB} ({type(error).__name__}: {first[:200]}); with network, or with "
        "a mirror in HF_ENDPOINT, run `snakemake assets` again; or copy a model folder here and use source: path"
    )


class AssetsError(SystemExit):
    """Some models of a study could not be fetched; the message has a paragraph for each and lists those that are there. A SystemExit,
    so that a script ends with the message alone, without a traceback."""


def fetch_models(models: Mapping[str, ModelConfig], manifest: Path) -> None:
    """Stage function: fetch and check every model, and write the manifest: for each its config, folder, digest and size in bytes.

    `models`: by their name in the study (`student`, teacher ids). Raises AssetsError, after trying all, when some are missing or damaged.
    """
    found, problems = {}, {}
    for name, config in models.items():
        try:
            found[name] = _fetched(config)
        except (OSError, ValueError, ImportError) as error:
            problems[name] = f"{name}: {error}"
    if problems:
        raise AssetsError(
            "\n\n".join(problems.values())
            + f"\n\n{len(found)} of {len(models)} models are there and stay ({', '.join(found) or 'none'}); "
            "run `snakemake assets` again for the rest"
        )
    write_json(manifest, found)


def _fetched(config: ModelConfig) -> dict[str, Any]:
    for part in (config, *config.parts):
        if part.source == "hub":
            fetch(part)
    folder = model_folder(config)
    check_weights(folder)
    load_tokenizer(config)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "config": config.model_dump(mode="json"),
        "folder": str(folder),
        "digest": content_digest(config),
        "bytes": size,
    }
