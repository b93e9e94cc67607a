"""Models and tokenizers: where they come from, whether they are sound, and rows of text as one model reads them.

Words: *source*, hub, path, gguf or pocket; *pocket* models, the three tiny ones that ship with the package; *row*, prompt and target.

    ModelConfig ─ download, paths ─► folder ─ integrity ─► checked ─ load (rope_scaling, adapters, device_placement) ─► model
    rows ─ tokenization (tokenizer_limits) ─► EncodedRow: ids and the byte at which each token ends
    cross_entropy: the loss on a row's target; pocket_*: the recipe of the pocket models

Example: 5 tokens of the text "12 apples" = `input_ids [5]`, `byte_start [5]`, `byte_end [5]` (bytes of prompt + target; −1 where a token is
never compared: specials, the first token, pieces of a multi-byte character) and `is_target [5]`.
"""
