"""Triton kernels: one op per file, under the same name as in ``pruneengine.ops``.

Every file needs torch and triton only, and can be used elsewhere. This file imports nothing, so that the package can be
found on a machine without triton. Launchers trust their arguments; ``pruneengine.ops`` checks them.
"""
