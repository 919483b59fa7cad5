"""How fast a recipe trains here, and in how much memory: some steps of it, for real."""
