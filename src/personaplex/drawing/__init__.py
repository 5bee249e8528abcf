"""Pages for people: a style in light and dark, charts as SVG, pictures as PNG; nothing to load, no script."""
