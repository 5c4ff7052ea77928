"""The running wing: models and texts in, cells out."""
