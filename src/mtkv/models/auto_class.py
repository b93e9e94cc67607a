"""Which of transformers' auto classes loads a model that reads or writes text."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForTextEncoding,
)


def causal_class(settings: Any) -> Any:
    """For a causal language model, or a multimodal one, of which only the text model is read: images are never given.

    Raises ValueError, naming the type, for a config of neither kind, such as that of a model for speech.
    """
    if _known(settings, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM):
        return AutoModelForCausalLM
    if not settings.is_encoder_decoder and _known(
        settings, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText
    ):
        return AutoModelForImageTextToText
    raise ValueError(
        f"model type {settings.model_type!r} is neither a causal language model nor a multimodal one with a text model that could be "
        "read alone; name its language model, where that is published by itself"
    )


def encoder_class(settings: Any) -> Any:
    """For an encoder or the encoder of an encoder–decoder. Raises ValueError, naming the type, where transformers knows none for text."""
    if _known(settings, MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModelForTextEncoding):
        return AutoModelForTextEncoding
    raise ValueError(f"model type {settings.model_type!r} has no encoder of text that could be read alone; use another")


def _known(settings: Any, mapping: Any, auto: type) -> bool:
    """By transformers itself or by code that comes with the model."""
    return type(settings) in mapping or auto.__name__ in (getattr(settings, "auto_map", None) or {})
