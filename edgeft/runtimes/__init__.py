"""Runtime adapters: a model file in, outputs out.

They need numpy and the one runtime, never the rest of edgeft, because a worker carries them to a device (see
`edgeft.measure`).
"""
