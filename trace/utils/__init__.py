"""How the project touches the world; nothing here knows what a point or a model is."""
