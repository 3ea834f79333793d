"""Backbones and vision towers: objects of transformers, timm and open_clip, attached, not rewritten."""
