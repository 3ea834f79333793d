"""mmembed and its peers side by side: one run, the same weights, machine and inputs, in turn."""
