# SPDX-License-Identifier: Apache-2.0
"""One module per task queue, each with the same three functions, and each tuned as its own manual says.

``work(place, told)`` is the worker, in a process of its own, whose job calls ``told.one()``;
``enqueue(place, number)`` asks for so many jobs; ``finished(place)`` counts those whose end is stored, for
queues that store it.
"""
