"""A model as a function of (parameters, state, input): the network, what its forward moves, its random draws.

The parts are imported by name, because :mod:`fastmeta.reference` may load attention alone.
"""
