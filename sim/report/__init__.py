"""Runs → one HTML page that stands alone: read, compared, drawn, laid out."""
