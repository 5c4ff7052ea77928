"""Lanes descend the network together, layer by layer.

The only folder that touches the layers and caches of transformers.
"""
