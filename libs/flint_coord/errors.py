"""What can go wrong between a process and etcd.

CoordError
├── CoordUnavailable   etcd did not answer in time, has no leader, or the connection broke: the effect is not known
├── LeaseEnded         the lease named in the request does not exist (any more)
└── CoordRefused       etcd answered and refused: a defect, or credentials
"""

from __future__ import annotations

__all__ = ["CoordError", "CoordRefused", "CoordUnavailable", "LeaseEnded"]


class CoordError(Exception):
    """Base of everything this room raises on purpose."""


class CoordUnavailable(CoordError):
    """No usable answer within the deadline. A change that was asked for may or may not have happened."""


class LeaseEnded(CoordError):
    """The lease does not exist in etcd: it expired, was revoked, or the store was replaced."""


class CoordRefused(CoordError):
    """etcd answered and refused. Repeating the request changes nothing."""
