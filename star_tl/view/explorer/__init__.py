"""The Jupyter widget: its Python side, and the page that shows it."""
