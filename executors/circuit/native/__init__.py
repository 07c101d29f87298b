"""C sources of the tile executor."""
