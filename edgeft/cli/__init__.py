"""The `edgeft` command: one module per verb. Nothing here imports torch or numpy before a verb needs it."""
