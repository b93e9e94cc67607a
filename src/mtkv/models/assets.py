"""Everything a study's models need, fetched once on a machine with network; afterwards the study runs offline.

In: the configs of all models of a study. Out: hub models in `assets/models`, GGUF files converted there, and a manifest with commits and
sizes. `HF_ENDPOINT` names a mirror. A model that cannot be had does not keep the others from being fetched.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkv.models.check import check_weights
from mtkv.models.digest import content_digest
from mtkv.models.fetch import fetch
from mtkv.models.load import load_tokenizer, model_folder
from mtkv.provenance.files import write_json

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig

GETTERS: dict[str, Callable[["ModelConfig"], Path]] = {"hub": fetch}


class AssetsError(SystemExit):
    """Some models of a study could not be had; the message has one paragraph for each and says which are there. Ends a script with
    that message alone, without a traceback."""


def fetch_models(models: Mapping[str, "ModelConfig"], manifest: Path) -> None:
    """Stage function: get every model, check it, and write the manifest: per model its config, folder, digest and bytes.

    `models` by name in the study (`student`, teacher ids). Raises AssetsError, after all were tried, when some are missing or unsound.
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


def _fetched(config: "ModelConfig") -> dict[str, Any]:
    GETTERS.get(config.source, model_folder)(config)
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
