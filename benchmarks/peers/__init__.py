"""This server beside its peers, on one machine, with the same load and the same simulated engine.

``python -m benchmarks peers`` runs it. ``cases`` is what is measured, ``servers`` who, ``load`` and ``processes`` how, ``run`` in
which order, and ``report`` what is made of the numbers.
"""
