"""params.yaml as typed, validated objects."""
