"""HTTP before and around the routes: connections, limits, who asks, bodies, problems."""
