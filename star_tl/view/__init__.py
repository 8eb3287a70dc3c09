"""What results look like: plots, cards, the report, the widget."""
