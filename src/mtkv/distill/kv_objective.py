"""The KV part of an arm: teachers' KV → maps → router → target → weighted loss terms (method.md §4–§9).

In: the student's KV at the supervised tokens of a batch and each teacher's KV there. Out: every term, what each adds to the loss
(`part.*`), and the routing weights. What is compared depends on the map:

- closed form: the fused teachers in the student's space with the student, both centred and divided by the fused normalisation scale;
- trained, `side: teacher`: the fused outputs of the maps with the student, both divided by the target's own root mean square, so that a
  map cannot lower the loss by shrinking;
- trained, `side: student`, and z_space: each teacher (in z_space projected too) with the student mapped to it, weighted by the router.

With `loss.unit: channel` the closed form and the fixed teacher of `side: student` have a normalisation scale for each channel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtkv.align.adapters import AdapterShape, LinearAdapter, ZSpacePair, build_adapter
from mtkv.align.closed_form_maps import SMALLEST_CHANNEL, FrozenMap, KVMap
from mtkv.distill.attention_kl import attention_kl
from mtkv.distill.controls import control_of
from mtkv.distill.kv_distance import kv_terms
from mtkv.distill.layer_schedule import LayerWeight, layer_range, layer_schedule
from mtkv.distill.relation_kl import check_heads, relation_terms
from mtkv.fuse.prototypes import prototypes_of, query_of
from mtkv.fuse.routers import build_router, entropy, entropy_loss, fuse
from mtkv.kv.shards import KEY, VALUE
from mtkv.registry import ImportPath, load
from mtkv.training.data_parallel import PART, LossTerm, world_size
from mtkv.training.step_statistics import mean_of_step

if TYPE_CHECKING:
    from mtkv.config.kv import KVConfig

SMALLEST_SPREAD = 0.1  # a trained map's output may start near zero
KEYS, VALUES, COSINE, ATTENTION = (
    LossTerm(name, "tokens", factor="kv") for name in ("key", "value", "cosine", "attention")
)
ENTROPY = LossTerm("entropy", "rows", factor="kv")

StudentKV = Float[Tensor, "tokens student_layers 2 width"]


@dataclass(frozen=True)
class Comparison:
    """Two tensors of one space `[tokens, layers, 2, _]`, to be divided by `scale [.., layers, 2, 1 or _]`; `weight [tokens]` or
    `[tokens, layers]`, None for 1."""

    student: Tensor
    target: Tensor
    weight: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True)
class SupervisedKV:
    """What a loss term of one's own (`kv.loss.terms`) is a function of: the KV at the supervised tokens of a batch, at least one.

    `student`, with its gradient, and `target`, the fused teachers, in the student's space, centred and not normalised; `comparisons`: the
    pairs that the built-in distances compare, with their scales; `sample`: each token's row, of `batch` rows.
    """

    student: StudentKV
    target: StudentKV
    comparisons: Sequence[Comparison]
    sample: Int[Tensor, " tokens"]
    batch: int
    layer_weight: LayerWeight


class KVObjective(nn.Module):
    """`maps`: one per teacher, all fitted against the same raw student. `heads`: KV heads of the student and of each teacher.

    `mapped`: the teachers' KV come from the mapped tier. `progress` (share of the steps done) steers layer annealing.
    """

    def __init__(
        self,
        config: "KVConfig",
        maps: Sequence[KVMap],
        heads: tuple[int, Sequence[int]] = (1, ()),
        mapped: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.control = control_of(config.control)
        # `mean_over` is an attribute of the function, where the term is no mean over supervised tokens
        self.own_terms = [
            (
                LossTerm(ImportPath(path).name, getattr(term := load(path), "mean_over", "tokens"), path, "kv"),
                term,
                weight,
            )
            for path, weight in config.loss.terms.items()
        ]
        self.mapped = mapped
        self.progress = 1.0
        self.student_heads, teacher_heads = heads
        self.maps = nn.ModuleList(FrozenMap(kv_map) for kv_map in maps)
        self.student_layers, _, self.width = maps[0].y_mean.shape
        widths = {name: kv_map.x_mean.shape[-1] for name, kv_map in zip(config.teachers, maps, strict=True)}
        check_heads(config.loss.relation_heads, {"student": self.width} | widths)
        self.reads_units = config.align.trained or config.loss.distance == "relation"
        self.restrict(None)
        self.router = build_router(config.fusion, len(maps), self.student_layers, 2 * self.width)
        self.adapters = nn.ModuleList(
            self._adapter(kv_map, theirs)
            for kv_map, theirs in zip(maps, teacher_heads or [1] * len(maps), strict=True)
            if config.align.trained
        )

    def restrict(self, layers: str | Sequence[int] | None) -> None:
        """Supervise these layers from now on, as `layer_range` takes them; None: those of the config. Raises ValueError for a range outside
        the model."""
        self.layers = layer_range(self.student_layers, layers or self.config.loss.layers)
        layer_schedule(self.student_layers, *self.layers, anneal=0.0, progress=1.0)

    @property
    def frozen(self) -> list[FrozenMap]:
        """The closed-form maps, one per teacher."""
        return [kv_map for kv_map in self.maps if isinstance(kv_map, FrozenMap)]

    @property
    def pools(self) -> bool:
        """Whether a term divides by a statistic of the step's own tokens, as the root mean square of a trained map's output."""
        return self.config.align.measured

    @property
    def matching_terms(self) -> list[str]:
        """Names of the terms that pull the student's KV to the teachers'; the router's own are not among them."""
        return [term.name for term in (KEYS, VALUES, COSINE, ATTENTION, *(term for term, _, _ in self.own_terms))]

    def forward(
        self,
        student_kv: StudentKV,
        sample: Int[Tensor, " tokens"],
        teacher_kv: Sequence[Float[Tensor, "tokens student_layers 2 teacher_width"]],
        batch: int,
        queries: Float[Tensor, "tokens student_layers heads head_dim"] | None = None,
        scaling: float | None = None,
        **context: Tensor,
    ) -> dict[str, Tensor]:
        """Terms `key`, `value`, `cosine`, `attention`, `entropy` and one's own (scalars), `kv` their weighted sum, `part.*` what each
        adds to it, `weights [batch, teachers, *layers]`, and `fused [tokens, student_layers, 2, width]`, the target in the student's own
        space."""
        config = self.config
        if self.control.map_only:
            student_kv = student_kv.detach()
        y_mean = torch.stack([kv_map.y_mean for kv_map in self.frozen]).mean(0)
        spread = torch.stack([kv_map.scale for kv_map in self.frozen]).mean(0)[..., None]
        centred = student_kv.float() - y_mean
        teachers = list(zip(self.frozen, teacher_kv, strict=True))
        kvs = torch.stack([self._in_student_space(kv_map, kv) for kv_map, kv in teachers], 1)
        units = [self._unit(kv_map, kv) for kv_map, kv in teachers] if self.reads_units else []
        routed = self._route(centred, kvs, spread, sample, batch, context)
        fused = fuse(kvs, routed, sample) if len(teachers) > 1 else kvs[:, 0]  # a single teacher's weight is 1
        weights, target = routed, fused
        if config.fusion.objective == "injected_ce":  # which trains the router, with its entropy; the KV loss does not
            weights, target = routed.detach(), fused.detach()
        layer_weight = layer_schedule(self.student_layers, *self.layers, config.loss.anneal, self.progress)
        comparisons = self._comparisons(centred, units, target, weights, sample)
        terms = self._distances(comparisons, centred, units, weights, sample, layer_weight)
        if config.loss.gamma > 0 and queries is not None:
            # The mean that both lack would shift all logits of a query alike.
            own, other = (x[:, :, KEY].unflatten(-1, (self.student_heads, -1)) for x in (centred, target))
            terms[ATTENTION.name] = attention_kl(queries, own, other, sample, batch, layer_weight, scaling)
        seen = SupervisedKV(centred, target, comparisons, sample, batch, layer_weight)
        for term, function, _ in self.own_terms:
            terms[term.name] = function(seen) if len(centred) else 0.0 * centred.sum()
        parts = touching(self._parts(terms, routed), self.parameters())
        return (
            terms
            | {PART + name: value for name, value in parts.items()}
            | {ENTROPY.name: entropy(weights), "kv": sum(parts.values(), start=0.0 * centred.sum())}
            | {"weights": weights.detach(), "fused": fused + y_mean}
        )

    def _unit(self, kv_map: FrozenMap, kv: Tensor) -> Tensor:
        unit = kv_map.unit(kv, self.config.loss.unit)
        return self.control.values(unit) if self.control.values else unit

    def _in_student_space(self, kv_map: FrozenMap, kv: Tensor) -> StudentKV:
        scale = kv_map.scale[..., None]
        own = kv.float() * scale if self.mapped else kv_map(kv)
        if not self.control.values:
            return own
        unit = own / (kv_map.channel_std.clamp_min(SMALLEST_CHANNEL) * scale)
        return self.control.values(unit) * kv_map.channel_std * scale

    def _route(
        self, centred: StudentKV, kvs: Tensor, unit: Tensor, sample: Tensor, batch: int, context: dict[str, Tensor]
    ) -> Float[Tensor, "batch teachers *layers"]:
        """Routing weights, from both sides in the student's space, each layer and kind divided by its normalisation scale `unit`."""
        fusion = self.config.fusion
        query = query_of(centred.detach(), sample, batch, fusion.prototypes, fusion.per_layer, unit)
        prototypes = prototypes_of(kvs, sample, batch, fusion.prototypes, fusion.per_layer, unit=unit)
        return self.router(query, prototypes, **context)

    def _comparisons(
        self, centred: StudentKV, units: list[Tensor], fused: Tensor, weights: Tensor, sample: Tensor
    ) -> list[Comparison]:
        align = self.config.align
        if not align.trained:
            # The fused target's scale: each teacher's own, mixed with the same weights as its KV.
            scales = torch.stack([kv_map.target_scale(self.config.loss.unit) for kv_map in self.frozen])
            mixed = len(scales) > 1  # a single teacher's weight is 1
            scale = fuse(scales.expand(len(sample), *scales.shape), weights.detach(), sample) if mixed else scales[0]
            return [Comparison(centred, fused, scale=scale)]
        student = centred / torch.stack([kv_map.y_scale for kv_map in self.frozen]).mean(0)[..., None]
        if align.side == "teacher" and not align.both_sides:
            targets = torch.stack([adapter(unit) for adapter, unit in zip(self.adapters, units, strict=True)], 1)
            return [_in_units_of_target("fused", student, fuse(targets, weights, sample))]
        pairs = []
        for number, (adapter, unit) in enumerate(zip(self.adapters, units, strict=True)):
            if align.both_sides:
                pair = _in_units_of_target(
                    f"pair {number}", cast(ZSpacePair, adapter).project_student(student), adapter(unit)
                )
            else:
                pair = Comparison(adapter(student), unit)
            pairs.append(replace(pair, weight=weights[:, number][sample]))
        return pairs

    def _distances(
        self,
        comparisons: list[Comparison],
        centred: StudentKV,
        units: list[Tensor],
        weights: Tensor,
        sample: Tensor,
        layer_weight: Tensor,
    ) -> dict[str, Tensor]:
        loss = self.config.loss
        kinds = [kind for kind, weight in ((KEY, loss.lambda_k), (VALUE, loss.lambda_v)) if weight > 0]
        found = [
            kv_terms(c.student, c.target, loss.distance, kinds, layer_weight, c.weight, c.scale) for c in comparisons
        ]
        terms = {name: sum((each[name] for each in found[1:]), start=found[0][name]) for name in found[0]}
        if loss.distance == "relation":
            student = centred / torch.stack([kv_map.y_scale for kv_map in self.frozen]).mean(0)[..., None]
            terms |= relation_terms(student, units, weights, sample, layer_weight, loss.sharpness, loss.relation_heads)
        return terms

    def _parts(self, terms: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """What each term adds to the loss; a term of weight 0 adds nothing and is left out."""
        loss, regulariser = self.config.loss, self.config.fusion.entropy
        scale = self.control.weight
        factors = [(KEYS, loss.lambda_k), (VALUES, loss.lambda_v), (COSINE, loss.beta), (ATTENTION, loss.gamma)]
        factors += [(term, weight) for term, _, weight in self.own_terms]
        parts = {
            term.name: scale * factor * terms[term.name]
            for term, factor in factors
            if factor > 0 and term.name in terms
        }
        if any(parameter.requires_grad for parameter in self.router.parameters()):
            parts[ENTROPY.name] = scale * entropy_loss(weights, regulariser.target, regulariser.strength)
        return parts

    def _adapter(self, kv_map: KVMap, teacher_heads: int) -> nn.Module:
        align = self.config.align
        teacher_width = kv_map.x_mean.shape[-1]
        sides = [(teacher_width, teacher_heads), (self.width, self.student_heads)]
        (width_in, heads_in), (width_out, heads_out) = sides if align.side == "teacher" else reversed(sides)
        sizes = (self.student_layers, width_in, width_out, heads_in, heads_out)
        adapter = build_adapter(align.map, AdapterShape(*sizes, align.expansion, align.dropout, align.shared_width))
        if isinstance(adapter, LinearAdapter) and align.side == "teacher":
            start_from(adapter, kv_map)
        return adapter


def touching(parts: dict[str, Tensor], parameters: Iterable[nn.Parameter]) -> dict[str, Tensor]:
    """The same parts; in several processes each of the parameters then gets a gradient, if only of zeros.

    FSDP exchanges gradients of what has one: a process that supervises no token must not have fewer than the others.
    """
    # ZeRO-3 has a parameter here only while its own module runs, and exchanges all of them anyway.
    trained = [parameter.sum() for parameter in parameters if parameter.requires_grad and parameter.numel()]
    if world_size() == 1 or not parts or not trained:
        return parts
    first = next(iter(parts))
    return parts | {first: parts[first] + 0.0 * torch.stack(trained).sum()}


def start_from(adapter: LinearAdapter, kv_map: KVMap) -> None:
    """Begin at the closed-form ridge map, rescaled: the adapter's input and output are normalised, the map's are not."""
    in_units = kv_map.weight * (kv_map.x_scale / kv_map.y_scale)[..., None, None]
    with torch.no_grad():
        adapter.weight.copy_(in_units)


def _in_units_of_target(name: str, student: Tensor, target: Tensor) -> Comparison:
    squares, _ = mean_of_step(name, target.square(), (0, 3))
    return Comparison(student, target, scale=squares.sqrt().clamp_min(SMALLEST_SPREAD)[..., None].to(target))
