"""What a node is compared with: other servers doing the smallest part of the same work, each in its own process."""
