"""Ranks, process groups and devices, the layout of the roles, and the exchange of samples between them."""
