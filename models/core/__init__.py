"""Row types, the plugin registry, money, random streams, the rubric, the hub and files."""
