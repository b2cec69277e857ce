"""Search space of AdaPruner: what a candidate is, and the choices that it is drawn from."""
