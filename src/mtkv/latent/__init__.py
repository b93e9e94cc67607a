"""Latent tokens: M trained vectors between question and answer, which stand in for a chain of thought.

    question [begin] latent 1 … latent M [end] answer      `model`: reads, refines, generates, saves
        the chain's tokens that a teacher selects → KV of each latent      `training`
        answers with latents zeroed, swapped or cut; what they decode to      `evaluation`

A *slot* is a position between question and answer, markers included; where KV are compared, that of one latent.
"""
