"""Notebooks, executed and rendered as pages that read offline."""
