"""The `latent` part of an arm: the latent tokens that stand where the chain of thought was (KaVa, arXiv 2510.02312)."""

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from mtkv.config.base import Section, without_unset


class LatentConfig(Section):
    """Student view `latent`: question, M latent tokens refined by T Jacobi iterations, answer."""

    tokens: int = Field(default=24, ge=0, description="M: latent tokens between question and answer; 0: none.")
    iterations: int = Field(
        default=3,
        ge=0,
        description="T: Jacobi iterations that refine all latent tokens at once; 0: they are read as they are.",
    )
    projection: bool = Field(
        default=True, description="Whether a trained projection turns a hidden state into the next iteration's input."
    )
    markers: bool = Field(default=True, description="Whether a trained begin and end token stand around the latents.")
    chain_weight: float = Field(
        default=1.0,
        ge=0,
        description="Weight of the same model's cross-entropy on the row with its chain, CE(A,C|Q); 0: not computed.",
    )
    codi_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of CODI's distance between the hidden states of both passes before the answer (a1); 0: not computed.",
    )
    step_weight: float | None = Field(
        default=None,
        gt=0,
        description="Weight of SIM-CoT's cross-entropy: a second decoder, in training only, says from each latent its piece of the chain; "
        "null: none.",
    )
    keep_last_step: bool = Field(
        default=False,
        description="Whether the chain that teaches keeps its last step, which gives the answer away.",
    )

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, handler(self), "step_weight")
