"""Weight decomposition of fine-tuned checkpoints into magnitude and direction."""
