"""How does a recipe become weights? Compiled loops, and their references in plain torch."""
