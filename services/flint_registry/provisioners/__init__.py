"""Provisioners: what starts and ends workers on somebody's machines."""

from flint_registry.provisioners.base import (
    NoneProvisioner,
    Order,
    Provisioned,
    Provisioner,
    ProvisionerRefused,
    ProvisionerUnavailable,
)

__all__ = [
    "NoneProvisioner",
    "Order",
    "Provisioned",
    "Provisioner",
    "ProvisionerRefused",
    "ProvisionerUnavailable",
]
