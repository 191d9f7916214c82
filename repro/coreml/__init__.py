"""Core ML packages on any machine: convert, read, execute, check.

Importing this package imports nothing else, so that a command that only shows records starts in a moment:
:mod:`~repro.coreml.package` reads a saved package (protobuf and numpy), :mod:`~repro.coreml.interpreter` executes
it (torch), :mod:`~repro.coreml.convert` makes one (coremltools) and :mod:`~repro.coreml.check` says whether it is
faithful to the module it was made from.
"""
