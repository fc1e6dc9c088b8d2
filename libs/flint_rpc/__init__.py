"""Servers, channels to replicas, errors, resource names and pages: what crosses a gRPC boundary."""
