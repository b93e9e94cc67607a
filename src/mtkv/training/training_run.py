"""What the processes of one training are told: the arguments of its stage function and its Snakemake job, as a JSON file.

Objects of mtkv's own classes (config sections, dataclasses) are written with the name of their class and made anew when read.
"""

import dataclasses
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from mtkv.provenance.files import read_json, write_json

CLASS, VALUE, PATH = "class", "value", "path"
PACKAGE = "mtkv."


class Named(list[Any]):
    """A list some of whose items have names, as the parts of a Snakemake job have: `part.name`, `part.get(name)`, `part.items()`."""

    def __init__(self, items: Iterable[Any] = (), names: Mapping[str, Any] | None = None) -> None:
        super().__init__(items)
        self.named = dict(names or {})

    @classmethod
    def of(cls, part: Any) -> Self:
        """The same part of a real job."""
        return cls(list(part), dict(part.items()) if hasattr(part, "items") else {})

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["named"][name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} in this part of the job") from None

    def get(self, name: str, default: Any = None) -> Any:
        return self.named.get(name, default)

    def items(self) -> Iterator[tuple[str, Any]]:
        return iter(self.named.items())


@dataclasses.dataclass
class JobFiles:
    """Of the `snakemake` object of a script what checkpoints need."""

    params: Named
    wildcards: Named
    input: Named
    output: Named
    log: Named
    resources: Named

    @classmethod
    def of(cls, job: Any) -> Self:
        """Of a real job, or of another one of these."""
        return cls(**{field.name: Named.of(getattr(job, field.name)) for field in dataclasses.fields(cls)})


@dataclasses.dataclass
class Request:
    """One call of `train_arm` with these arguments, but `keeping`, in processes of `strategy`; `result`: where the facts go."""

    job: JobFiles
    strategy: str
    arguments: dict[str, Any]
    result: Path

    def save(self, path: Path) -> None:
        """Write as JSON. Raises TypeError for an argument that cannot be."""
        write_json(path, encoded(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        found = decoded(read_json(path))
        if not isinstance(found, cls):
            raise ValueError(f"{path}: not the request of a training")
        return found


def encoded(value: Any) -> Any:
    """As what JSON has. Raises TypeError for an object of a class that is not mtkv's."""
    if isinstance(value, Named):
        return _tagged(value, {"items": encoded(list(value)), "names": encoded(value.named)})
    if isinstance(value, Path):
        return {PATH: str(value)}
    if isinstance(value, Mapping):
        return {VALUE: {str(key): encoded(item) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if dataclasses.is_dataclass(value):
        return _tagged(value, {field.name: encoded(getattr(value, field.name)) for field in dataclasses.fields(value)})
    if hasattr(value, "model_dump"):
        return _tagged(value, encoded(value.model_dump(mode="json")))
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, str) else value
    raise TypeError(f"a training's request cannot hold {value!r} of {type(value)}")


def decoded(value: Any) -> Any:
    """What `encoded` was given."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if PATH in value:
        return Path(value[PATH])
    if CLASS not in value:
        return {key: decoded(item) for key, item in value[VALUE].items()}
    module, _, name = value[CLASS].rpartition(".")
    if not module.startswith(PACKAGE):
        raise ValueError(f"{value[CLASS]} is not a class of this package")
    made = getattr(importlib.import_module(module), name)
    content = value[VALUE]
    if hasattr(made, "model_validate"):
        return made.model_validate(decoded(content))
    return made(**{key: decoded(item) for key, item in content.items()})


def _tagged(value: Any, content: Any) -> dict[str, Any]:
    if not type(value).__module__.startswith(PACKAGE):
        raise TypeError(f"a training's request cannot hold {value!r}: {type(value)} is not mtkv's")
    return {CLASS: f"{type(value).__module__}.{type(value).__name__}", VALUE: content}
