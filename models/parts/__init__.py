"""Modules of a paper that more than one model uses: alignment, sampling, context, semantic guidance."""
