"""`medframe serve`: what was trained, behind OpenAI's API, and a page to talk to it."""
