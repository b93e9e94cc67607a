"""The latent student: latents, Jacobi iterations, caches, files; nothing of training or data.

    training   rows with placeholders ─ student.LatentStudent.embed: T iterations with gradients ─► final pass
               (prefix_cache: the question is read once in a step)
    inference  questions, padded on the left ─ jacobi.refine on a cache ─ interventions ─► generation.generate, generation.score
    latent_tokens: the small trained part; on disk an ordinary model folder and `latent.safetensors` beside the weights

Example, M = 6 latents, T = 3, hidden 576: `latents [6, 576]`; a row of 40 question tokens reads 40 + 1 + 6 + 1 positions before its
answer. Each iteration: new input of latent m = projection(last hidden state at the position before it), so `[batch, 6, 576]`, all at once.
"""
