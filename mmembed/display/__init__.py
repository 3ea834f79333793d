"""Pictures of what was found: grids of hits, and the letters in them."""
