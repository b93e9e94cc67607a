"""Latent tokens in place of the chain of thought, taught by KV (KaVa, arXiv 2510.02312; docs/kava.md, docs/method.md §10).

Words: *latent*, one of M trained input vectors between question and answer; *iteration*, one of T Jacobi passes that refine all latents
at once; *slot*, a position between question and answer, markers included, or where KV are compared that of one latent; *own* KV, the
student's, when it teaches itself by reading the chain.

    model       the student: question, [begin], M latents, [end], answer; training and inference passes
    training    rows without their chain, the same rows with it, and each teacher's KV of the chain at the latents
    evaluation  the same model behind lm-eval's interface, and what its latents are worth
"""
