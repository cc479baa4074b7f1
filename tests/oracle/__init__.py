"""Slow, obvious models of what the native core does fast. Nothing here shares a line with the code it judges."""
