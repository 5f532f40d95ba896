"""Whole images through networks: `sliding` predicts, `loading` builds networks from weights, `bundle` packs a model.

Nothing is imported here, so that reading a bundle does without torch.
"""
