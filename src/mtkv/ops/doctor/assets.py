"""Models and data sets: what a study reads, what of it is here, what of it is behind a licence, and whether the hub answers.

With HF_HUB_OFFLINE=1 the network is not used; else at most two short requests per gated thing that is not here yet.
"""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtkv.models.paths import gguf_path
from mtkv.ops.cost_model.model_sizes import local_folder
from mtkv.ops.doctor.checks import DoctorContext, Finding, Level, error, note, ok, warning

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig
    from mtkv.data.loading import Origin


HUB = "https://huggingface.co"
# Gated owners and families (as of 2026); where the hub can be asked, its answer counts.
GATED = (
    *("meta-llama/", "google/gemma", "mistralai/", "bigcode/starcoder"),
    *("CohereLabs/", "CohereForAI/", "stabilityai/"),
)
FETCH = "snakemake assets, on a machine with network (a login node); then copy assets/ here if this one has none"


@dataclass(frozen=True)
class Wanted:
    """A model or data set of the hub that the study reads. `kind`: models or datasets, as in the hub's URLs; `needed`: the study stops
    without it.
    """

    name: str
    kind: str
    here: bool
    gated: bool
    needed: bool = True

    @property
    def page(self) -> str:
        """Its page on the hub, where the licence is accepted."""
        return f"{HUB}/{'datasets/' if self.kind == 'datasets' else ''}{self.name}"


def assets(context: DoctorContext) -> Iterator[Finding]:
    """Everything that the study reads is here."""
    for name, model in models(context):
        place = {"path": Path(model.name) / "config.json", "gguf": gguf_path(model)}.get(model.source)
        if place is not None and not (context.folder / place).is_file():
            fix = f"copy it there, or change the config's {name}.name"
            yield error(f"{name}: there is no model at {model.name}", fix)
    found = wanted(context)
    missing = [thing for thing in found if not thing.here]
    if needed := [thing.name for thing in missing if thing.needed]:
        yield error(f"not here: {', '.join(needed)}", FETCH)
    if asked := [thing.name for thing in missing if not thing.needed]:
        yield warning(f"benchmarks that are not here: {', '.join(asked)}; their cells of the report stay empty", FETCH)
    if not missing:
        yield ok(f"all {len(found)} of the hub are here" if found else "the study needs nothing of the hub")


def models(context: DoctorContext) -> list[tuple[str, "ModelConfig"]]:
    """(path in the config, model) of every model of the study."""
    teachers = context.study.teachers.models.items()
    return [("student", context.study.student), *((f"teachers.models.{name}", model) for name, model in teachers)]


def wanted(context: DoctorContext) -> list[Wanted]:
    """Everything that the study needs from the hub, each once."""
    study = context.study
    found = [
        Wanted(model.name, "models", local_folder(model) is not None, model.name.startswith(GATED))
        for _, model in models(context)
        if model.source == "hub"
    ]
    if study.data.mixture != "pocket":
        found += _data_sets(context)
    return list(dict.fromkeys(found))


def _data_sets(context: DoctorContext) -> list[Wanted]:
    """The data sets of the training sources and of the benchmarks that the study evaluates."""
    from mtkv.data.build import wanted_splits

    study = context.study
    sources = wanted_splits(study.data, [])
    benchmarks = [pair for pair in wanted_splits(study.data, study.datasets) if pair not in sources]
    return [*_by_name(context, sources, needed=True), *_by_name(context, benchmarks, needed=False)]


def _by_name(context: DoctorContext, splits: list[tuple["Origin", str]], needed: bool) -> list[Wanted]:
    """One entry per data set; it is here when all of its splits are."""
    here = {origin: [_split_here(context, *pair) for pair in splits if pair[0] == origin] for origin, _ in splits}
    return [Wanted(origin.hub, "datasets", all(found), origin.gated, needed) for origin, found in here.items()]


def _split_here(context: DoctorContext, origin: "Origin", split: str) -> bool:
    """Whether a split's files are in `data.folder`; without one, whether Hugging Face's own cache knows the data set."""
    from mtkv.data.loading import local_files
    from mtkv.models.paths import cache_folder

    if folder := context.study.data.folder:
        return all(local_files(origin, config, split, context.folder / folder) for config in origin.configs)
    return (cache_folder(context.study.student).parent / f"datasets--{origin.hub.replace('/', '--')}").is_dir()


TIMEOUT = 3.0


def licences(context: DoctorContext) -> Iterator[Finding]:
    """Gated models and data sets that are still to be fetched: is there a token, and has its owner accepted the licence?"""
    gated = [thing for thing in wanted(context) if thing.gated and not thing.here]
    there = token()
    for thing in gated:
        level: Level = "error" if thing.needed else "warning"
        if there is None:
            fix = f"accept the licence at {thing.page}, then `hf auth login` (or set HF_TOKEN)"
            yield Finding(level, f"{thing.name} is gated, and there is no token of the hub", fix)
        elif not offline() and (code := answer(f"/api/{thing.kind}/{thing.name}/auth-check", there)) in (401, 403):
            why = "does not know this token" if code == 401 else "has not let this token's owner in"
            fix = f"accept the licence at {thing.page} with the account of the token"
            yield Finding(level, f"{thing.name}: the hub {why}", fix)
        else:
            yield ok(f"{thing.name} is gated; there is a token")
    if not gated:
        yield ok("nothing gated is to be fetched")


def hub(context: DoctorContext) -> Iterator[Finding]:
    """Whether the hub, or the mirror that HF_ENDPOINT names, answers; asked only when something is to be fetched."""
    missing = [thing for thing in wanted(context) if not thing.here]
    if not missing:
        yield ok("not needed: everything is here")
    elif offline():
        fix = "`snakemake assets` fetches nevertheless, where there is network; unset it to check the network here"
        yield note("HF_HUB_OFFLINE is set, so the hub is not asked", fix)
    elif (code := answer("/", None)) is None:
        fix = (
            "fetch on a machine with network; behind a firewall name a mirror in HF_ENDPOINT or a proxy in HTTPS_PROXY"
        )
        yield warning(f"{endpoint()} does not answer within {TIMEOUT:g} s", fix)
    elif code >= 500:
        yield warning(f"{endpoint()} answers with {code}", "try again later, or another mirror in HF_ENDPOINT")
    else:
        yield ok(f"{endpoint()} answers")


def token() -> str | None:
    """The hub's token, by huggingface_hub's rules: HF_TOKEN, then the file of HF_TOKEN_PATH or HF_HOME."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return os.environ[name].strip()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def offline() -> bool:
    """Whether huggingface_hub is told to stay off the network."""
    asked = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value in ("1", "ON", "YES", "TRUE") for value in asked)


def endpoint() -> str:
    """The address of the hub or its mirror."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def answer(path: str, bearer: str | None, timeout: float = TIMEOUT) -> int | None:
    """The HTTP status of a path of the hub; None without an answer in time, also when it is the name lookup that hangs."""
    found: list[int] = []
    thread = threading.Thread(target=_ask, args=(f"{endpoint()}{path}", bearer, timeout, found), daemon=True)
    thread.start()
    thread.join(timeout + 0.5)
    return found[0] if found else None


def _ask(url: str, bearer: str | None, timeout: float, found: list[int]) -> None:
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            found.append(reply.status)
    except urllib.error.HTTPError as refused:
        found.append(refused.code)
    except (OSError, ValueError):
        return
