"""Numbers in, numbers and enums out."""
