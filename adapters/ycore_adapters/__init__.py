"""Thin bindings from ycore to the world: stores, the driver, and the transports on it."""
