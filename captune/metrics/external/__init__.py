"""Metrics that need another program or model: METEOR and SPICE in Java, CLIPScore with a CLIP model."""
