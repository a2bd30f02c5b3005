"""The loss in the place of other libraries' own: one import line each, equal to what it replaces.

A module here is named after the library that it serves, and imports that library only where it extends its classes.
What the fused loss does not cover runs as the library wrote it.
"""
