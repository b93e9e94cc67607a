"""The `kv.fuser` of an injection arm (`kv.transfer: inject`), and what of the `kv` part means something there."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mtkv.config.base import Registered, Section, problem
from mtkv.registry import Registry

if TYPE_CHECKING:
    from mtkv.config.kv import KVConfig

HEADS = Registry("mtkv.inject.fuser", "HEADS")
MATCH_ONLY = ("zero_weight", "projector_only", "random_direction")
INJECT_ONLY = ("self",)


class FuserConfig(Section):
    """The small trained module that turns a teacher's KV at a question's token into a correction of the student's own K and V there."""

    head: Annotated[str, Registered(HEADS)] = Field(
        default="mlp",
        description="Kind of module, one per teacher. mlp: one hidden layer over all layers at once. linear: none. gated: each layer from "
        "its own mapped teacher layer, times a trained gate of its keys and one of its values (as Cache-to-Cache). All begin at exactly 0.",
    )
    hidden: int = Field(default=128, ge=1, description="Hidden width of mlp, and of each layer of gated.")


def check_injection(kv: "KVConfig") -> None:
    """Raises where a `kv` part has settings of the other transfer than its own."""
    if kv.transfer == "match":
        if kv.fuser is not None:
            raise problem("given, but transfer is match; allowed: null, or transfer inject", "fuser")
        if kv.control in INJECT_ONLY:
            raise problem(f"{kv.control!r} needs transfer inject: nothing is put in the teachers' place", "control")
        return
    if kv.loss != type(kv.loss)():
        raise problem("given, but transfer inject has no KV loss: cross-entropy trains the fuser; leave it out", "loss")
    if kv.align.time != "sync":
        message = f"{kv.align.time!r} may show a token what stands behind it, the answer even; allowed with transfer inject: sync"
        raise problem(message, "align", "time")
    if kv.select.method != "full":
        message = f"{kv.select.method!r} chooses among all of a row's tokens, not the question's; allowed with transfer inject: full"
        raise problem(message, "select", "method")
    if read := kv.fusion.row_statistics:
        message = f"{kv.fusion.strategy!r} reads the answer's {read[0]}, which no question has; allowed with transfer inject: the others"
        raise problem(message, "fusion", "strategy")
    if kv.fusion.objective != "kv":
        message = f"{kv.fusion.objective!r} given, but transfer inject trains the router by cross-entropy anyway; leave it out"
        raise problem(message, "fusion", "objective")
    if kv.control in MATCH_ONLY:
        message = f"{kv.control!r} changes the KV loss, which transfer inject has not; allowed: self, zeros, gaussian and the shuffled ones"
        raise problem(message, "control")
