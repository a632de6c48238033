"""TextWorld's games: made and kept, played, cleaned, drawn; `envs/textworld.py` makes an environment of them."""
