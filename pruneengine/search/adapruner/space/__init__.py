"""Search space of AdaPruner: candidates, and the choices that they are drawn from."""
