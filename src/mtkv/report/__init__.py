"""The report: one offline HTML file, and the figures and tables of a paper, from the files of compare and the cards.

The names below load on first use, so that `import mtkv.report` imports nothing else.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {"visualize_alignment": "visualize", "visualize_layer_mapping": "visualize"}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
