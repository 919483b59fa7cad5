"""What a training will take of memory and time, told from the recipe and the lengths of its data, without weights."""
