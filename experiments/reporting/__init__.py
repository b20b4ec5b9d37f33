"""Published numbers, figures and pages."""
