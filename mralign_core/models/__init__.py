"""Models: where they are, loading them, how they are spoken to, and the LoRA adapter on them."""
