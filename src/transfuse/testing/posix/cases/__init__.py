"""The cases, one module for each group; see transfuse.testing.posix.runner for how they are found."""
