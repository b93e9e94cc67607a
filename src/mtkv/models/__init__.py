"""Models and their tokenizers, from a name in the config to a checked model and rows of its own token ids.

hub → `download` ─┐
GGUF → `gguf`    ─┼→ folder (`paths`) → `integrity` → `load` → model, tokenizer → `tokenization.encode_rows` → `EncodedRow` (ids, byte ends)
own folder       ─┘                                             └ `rope_scaling`, `device_placement`, `adapters` (LoRA, four bits)

`pocket_*` make the tiny models in the package. *Pocket model*: one of about a million parameters, trained by our own recipe on a CPU.
"""
