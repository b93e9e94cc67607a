"""Rotate keys by a model's own rotary function, and un-rotate them.

RoPE rotates channel pairs by an angle proportional to the position (RoFormer, arXiv 2104.09864, eq. 16); rotating by the negative
angle is its inverse. Which cos and sin a layer really used, and whether it rotated its keys at all (SmolLM3, Cohere 2 and
EXAONE 4 mix layers with and without RoPE), is seen by watching the call, not guessed from the config.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROTARY_FUNCTION = "apply_rotary_pos_emb"
Rotary = tuple[Float[Tensor, "batch time rotary_dim"], Float[Tensor, "batch time rotary_dim"]]


def rotate(
    key: Float[Tensor, "batch heads time head_dim"],
    cos: Float[Tensor, "batch time rotary_dim"],
    sin: Float[Tensor, "batch time rotary_dim"],
    module: nn.Module,
) -> Float[Tensor, "batch heads time head_dim"]:
    """Apply the RoPE of the attention layer `module` to keys (or queries) before RoPE.

    Raises NotImplementedError for a module whose rotary function is not of the usual form.
    """
    function = _rotary_function(module)
    width = getattr(
        module, "rotary_ndims", key.shape[-1]
    )  # Phi and StableLM split off the rotary channels before the call
    turned = function(key[..., :width], cos, sin).to(key.dtype)
    return turned if width == key.shape[-1] else torch.cat([turned, key[..., width:]], dim=-1)


def unrotate(
    key: Float[Tensor, "batch heads time head_dim"],
    cos: Float[Tensor, "batch time rotary_dim"],
    sin: Float[Tensor, "batch time rotary_dim"],
    module: nn.Module,
) -> Float[Tensor, "batch heads time head_dim"]:
    """Undo `rotate`: the same function with −sin, divided by attention_scaling² = cos² + sin², in float32 at least."""
    precise = torch.promote_types(key.dtype, torch.float32)
    cos, sin = cos.to(precise), sin.to(precise)
    scaling = cos.square() + sin.square()
    return rotate(key.to(precise), cos / scaling, -sin / scaling, module).to(key.dtype)


class RotaryWatch:
    """Context manager: `last` is what the latest rotary call in the layers' modeling files used: `(cos, sin)`, or the name of a
    rotary function that `rotate` does not know, or None when there was no call since `last` was reset.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.last: Rotary | str | None = None
        self._scopes = {id(scope): scope for scope in map(_scope, layers)}.values()
        self._originals: list[tuple[dict[str, Any], str, Callable[..., Any]]] = []

    def __enter__(self) -> Self:
        for scope in self._scopes:
            for name in [name for name in scope if name.startswith("apply_rot") and callable(scope[name])]:
                self._originals.append((scope, name, scope[name]))
                scope[name] = self._watched(name, scope[name])
        return self

    def __exit__(self, *error: object) -> None:
        for scope, name, original in self._originals:
            scope[name] = original
        self._originals.clear()

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            known = name == ROTARY_FUNCTION and "cos" in given and "sin" in given
            self.last = (given["cos"], given["sin"]) if known else name
            return result

        return watched


def has_rotary_function(module: nn.Module) -> bool:
    """Whether the modeling file of an attention layer has any rotary function that can be watched."""
    return any(name.startswith("apply_rot") for name in _scope(module))


def _scope(module: nn.Module) -> dict[str, Any]:
    """Globals of the layer's `forward`, where its rotary function is looked up."""
    return inspect.unwrap(type(module).forward).__globals__


def _rotary_function(module: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    function = _scope(module).get(ROTARY_FUNCTION)
    if function is None:
        raise NotImplementedError(f"{type(module).__name__}: rotary position embeddings of an unknown form")
    function = inspect.unwrap(function)
    parameters = list(inspect.signature(function).parameters)
    if parameters[:4] == ["q", "k", "cos", "sin"]:
        return lambda x, cos, sin: function(x[:, :1], x, cos, sin)[1]
    if parameters[:3] == ["x", "cos", "sin"]:
        return function
    raise NotImplementedError(f"{type(module).__name__}: {ROTARY_FUNCTION}({', '.join(parameters)}) is of unknown form")
