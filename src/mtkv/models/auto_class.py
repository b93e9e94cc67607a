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
    """The auto class for the config `settings` of a causal or a multimodal language model (which never gets images here).

    Raises ValueError, naming the type, for any other config, such as that of a speech model.
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
    """The auto class for an encoder, or an encoder–decoder's encoder. Raises ValueError, naming the type, where none reads text."""
    if _known(settings, MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModelForTextEncoding):
        return AutoModelForTextEncoding
    raise ValueError(f"model type {settings.model_type!r} has no encoder of text that could be read alone; use another")


def _known(settings: Any, mapping: Any, auto: type) -> bool:
    """Whether `mapping` has the config's class, or the model brings its own code for the auto class `auto`."""
    return type(settings) in mapping or auto.__name__ in (getattr(settings, "auto_map", None) or {})
