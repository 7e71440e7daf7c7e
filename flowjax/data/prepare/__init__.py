"""Real data on disk: fetched by package name or taken from a folder, checked, written as ArrayRecord with a card."""
