"""The compiled form: hand-written extensions, and the loader that chooses between the forms."""
