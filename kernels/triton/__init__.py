"""The engine's Triton kernels: one op a file, under the same name as in ``pruneengine.ops``.

Every file needs torch and triton only and can be lifted out. Nothing is imported here, so that the package can be
found on a machine without triton; a launcher trusts its arguments, ``pruneengine.ops`` checks them.
"""
