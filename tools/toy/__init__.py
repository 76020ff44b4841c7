"""Pretraining of the packaged models: `tools.toy.pretrain` makes `toy`, `tools.toy.pretrain_vlm` makes `toy-vlm`."""
