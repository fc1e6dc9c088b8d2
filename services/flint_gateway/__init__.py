"""The public edge: authenticates, authorises, validates, limits, then forwards; and watches runs for clients."""
