"""From rows with a chain of thought to a latent student's loss: `chain_of_thought`, `dataset`, `selection`, `objective`, `codi_loss`."""
