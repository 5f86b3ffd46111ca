"""What nodes do together: leases, slots, parcels between them, and where users are connected."""
