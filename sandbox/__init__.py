# SPDX-License-Identifier: Apache-2.0
"""Device managers to try the product against without a tenant: each speaks its vendor's own wire format.

The credentials are fixed and public, for they open nothing but a process on this machine. The neighbour is
a second client of the same tenant, for whoever wants to play somebody else's tool.
"""

CLIENT_ID = "sandbox"
CLIENT_SECRET = "sandbox-secret"  # noqa: S105  (public on purpose, see above)
NEIGHBOUR_ID = "neighbour"
NEIGHBOUR_SECRET = "neighbour-secret"  # noqa: S105  (public on purpose, see above)
CLIENTS = {CLIENT_ID: CLIENT_SECRET, NEIGHBOUR_ID: NEIGHBOUR_SECRET}
