"""How well a model foretells answers that it was not trained on."""
