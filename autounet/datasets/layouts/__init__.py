"""How folders are laid out: one module a layout, and what they share."""
