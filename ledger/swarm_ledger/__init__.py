"""GPU time metered, priced and paid for: quotes, vouchers, channels, and the ledgers that settle them.

Knows neither the network nor models: what crosses a link is bytes, made and read here, carried by others.
"""
