"""The server: vectors over HTTP in the forms that clients know, and search over an index; `mmembed serve` starts it."""
