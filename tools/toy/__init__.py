"""Pretraining of the tiny MiniGPT-4 that is packaged as the model `toy`: `python -m tools.toy.pretrain --out DIR`."""
