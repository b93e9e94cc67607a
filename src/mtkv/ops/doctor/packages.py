"""Python and the packages: what is installed against requirements.lock, and the extras that this study and profile need."""

import platform
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mtkv.ops.doctor.checks import DoctorContext, Finding, error, ok, warning
from mtkv.provenance.code_digest import PACKAGE_FOLDER

LOCKED = "pip install -r requirements.lock"
SHOWN = 5
SHELL_SIGNS = r"""[\s'"`$&();<>|\\*?]"""  # characters that a shell interprets; the Makefile has the same list


@dataclass(frozen=True)
class Declared:
    """The versions of Python that mtkv supports, and its requirements by extra ("": of every installation)."""

    python: str
    extras: dict[str, list[Requirement]]


def python(context: DoctorContext) -> Iterator[Finding]:
    """A version of Python that mtkv supports, at a path from which Snakemake can start it."""
    if problem := path_problem(sys.executable):
        fix = "move the folder to another path and make the environment anew there: rm -r .venv; make study"
        yield error(problem, fix)
    wanted, here = declared().python, platform.python_version()
    if not SpecifierSet(wanted).contains(here, prereleases=True):
        fix = "make the environment with a newer one: rm -r .venv; make PYTHON=python3.11 study"
        yield error(f"Python {here}, but mtkv needs {wanted}", fix)
    else:
        yield ok(f"Python {here}")


def path_problem(program: str) -> str | None:
    """Why Snakemake cannot start jobs with the Python at this path, which it gives a shell unquoted; None where it can."""
    found = sorted({repr(sign) for sign in re.findall(SHELL_SIGNS, program)})
    return f"{program}: every job would die of {', '.join(found)} in the path of its Python" if found else None


def packages(context: DoctorContext) -> Iterator[Finding]:
    """Missing and outdated packages stop the study; versions other than the locked ones may change numbers."""
    pins = locked(context.folder / "requirements.lock")
    broken, optional = unmet(declared().extras[""]), other_versions(pins)
    if broken:
        yield error(f"needed: {'; '.join(broken)}", LOCKED)
    if not pins:
        yield warning("no requirements.lock here, so versions cannot be compared", "run in the repository's folder")
    elif optional:
        more = f" and {len(optional) - SHOWN} more" if len(optional) > SHOWN else ""
        yield warning(f"not as locked: {', '.join(optional[:SHOWN])}{more}; numbers may differ", LOCKED)
    elif not broken:
        yield ok(f"{len(pins)} packages as in requirements.lock, where installed")


def extras(context: DoctorContext) -> Iterator[Finding]:
    """Optional packages that this study or this profile needs."""
    needed = {extra: why for extra, why in wanted_extras(context).items() if why}
    for extra, why in needed.items():
        if missing := unmet(declared().extras.get(extra, [])):
            yield error(f"{why} needs {'; '.join(missing)}", f"pip install 'mtkv[{extra}]'")
        else:
            yield ok(f"mtkv[{extra}], for {why}")


def wanted_extras(context: DoctorContext) -> dict[str, str]:
    """Extra → what needs it; an empty text for one that nothing needs."""
    study = context.study
    models = {"student": study.student, **study.teachers.models}
    trainings = {name: arm.training for name, arm in study.arms.items() if arm.training}
    lora = {f"arms.{name}.training.lora": training.lora for name, training in trainings.items() if training.lora}
    quantized = [f"{name}.quantize" for name, settings in lora.items() if getattr(settings, "quantize", None)]
    gguf = [f"model {name} (source: gguf)" for name, model in models.items() if model.source == "gguf"]
    strategy = study.resources.train.strategy
    return {
        "lora": ", ".join(lora),
        "qlora": ", ".join(quantized),
        "gguf": ", ".join(gguf),
        "vllm": "evaluation.backend vllm" if study.evaluation.backend == "vllm" else "",
        "deepspeed": f"resources.train.strategy {strategy}" if strategy.startswith("zero") else "",
        "slurm": f"profile {context.profile_folder}" if context.on_slurm else "",
    }


def locked(path: Path) -> dict[str, str]:
    """The pinned versions by canonical name; empty without a lock file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pins = (line.split("#")[0].split(";")[0].strip().split("==") for line in lines)
    return {canonicalize_name(pin[0]): pin[1] for pin in pins if len(pin) == 2}


def declared() -> Declared:
    """What mtkv declares: by a checkout's pyproject.toml, where there is one (its installation may be older), else as installed."""
    path = PACKAGE_FOLDER.parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}) if path.is_file() else {}
    if project.get("name") == "mtkv":
        texts = {"": project["dependencies"], **project.get("optional-dependencies", {})}
        needs = {extra: [Requirement(text) for text in own] for extra, own in texts.items()}
        holding = {extra: [need for need in own if _of(need, "")] for extra, own in needs.items()}
        return Declared(project["requires-python"], holding)
    facts, every = metadata("mtkv"), [Requirement(text) for text in requires("mtkv") or []]
    extras = {name: [need for need in every if _of(need, name)] for name in ("", *facts.get_all("Provides-Extra", []))}
    return Declared(facts["Requires-Python"] or "", extras)


def unmet(needs: list[Requirement]) -> list[str]:
    """The requirements that are not installed or not in a fitting version, as texts."""
    found = []
    for need in needs:
        here = installed(need.name)
        if here is None:
            found.append(f"{need.name} (not installed)")
        elif not need.specifier.contains(here, prereleases=True):
            found.append(f"{need.name}{need.specifier} (installed: {here})")
    return found


def other_versions(pins: dict[str, str]) -> list[str]:
    """Installed packages in other versions than pinned, as texts; a local part such as +cpu is ignored."""
    here = {name: installed(name) for name in pins}
    return [
        f"{name} {here[name]} (locked: {pin})"
        for name, pin in pins.items()
        if (found := here[name]) and found.split("+")[0] != pin.split("+")[0]
    ]


def installed(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _of(need: Requirement, extra: str) -> bool:
    """Whether a requirement belongs to `extra` on this machine, and not already to every installation (`extra` "")."""
    always = need.marker is None or need.marker.evaluate({"extra": ""})
    if not extra or need.marker is None:
        return always and not extra
    return not always and need.marker.evaluate({"extra": extra})
