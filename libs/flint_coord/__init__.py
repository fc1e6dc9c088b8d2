"""Permission and discovery through etcd: leases, keys, watches, elections. Only this room imports the etcd client."""

from flint_coord.coord import Coord
from flint_coord.election import Election
from flint_coord.errors import CoordError, CoordRefused, CoordUnavailable, LeaseEnded
from flint_coord.lease import Lease
from flint_coord.watch import Change, ChangeKind, Item, StoreIdentity

__all__ = [
    "Change",
    "ChangeKind",
    "Coord",
    "CoordError",
    "CoordRefused",
    "CoordUnavailable",
    "Election",
    "Item",
    "Lease",
    "LeaseEnded",
    "StoreIdentity",
]
