"""The order of the stages: recipes, the Prefect flow, the registry of published models, the report and the command."""
