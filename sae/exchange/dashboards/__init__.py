"""Feature files of Neuronpedia, SAEDashboard and circuit-tracer, to and from an atlas.

`rows` turns an atlas into what their pages show, and one module a tool writes that. What is
read of theirs becomes the tables that `tables` collects.
"""
