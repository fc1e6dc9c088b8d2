"""The worker host: starts workers as processes of this machine when the leading registry asks, and sees them end."""
