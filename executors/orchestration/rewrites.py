"""stub during development"""
RULES = {}
DEFAULT = ()
def with_alternatives(graph, rules):
    return graph
