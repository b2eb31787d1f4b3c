"""How much depth a frozen policy's image tokens hold: the probe of Spatial Forcing (arXiv 2510.12276), in numbers."""
