"""What is too long for a page or a test: results that are kept as tables beside the book."""
