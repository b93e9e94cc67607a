"""A latent student's answers, whether they depend on its latents, what those decode to, and which chain tokens taught them."""
