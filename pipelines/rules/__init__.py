"""The score functions of the rules, by theme; `pipelines/filters.py` holds their order."""
