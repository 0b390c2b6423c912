"""The `ninefold` command, one file per group of subcommands."""
