"""The tokens of training and of generation, side by side: what a language model is fed and trained on."""
