"""What a model is computed with: weights, dtypes, numerical switches."""
