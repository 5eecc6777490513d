"""`wdecomp reproduce`: the paper's experiments on the demo's model, several seeds each.

`trials` says what is trained, `running` trains it, `figures` makes tables of what came out, `page`
puts each beside the paper's own figures. Nothing here was chosen by its result: a setting is the
demo's, or has to the demo's the ratio that the paper's settings have to each other.
"""
