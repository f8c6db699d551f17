"""The network: layers, losses, its file, exported forms."""
