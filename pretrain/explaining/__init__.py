"""What an encoder looks at, as images.

from pretrain.explaining import explain

for explanation in explain("runs/first/encoder", "my/photos"):
    display(explanation.sheet())
"""

from pretrain.explaining.explainer import ClassMap, Explainer, Explanation, explain, open_explainer

__all__ = ["ClassMap", "Explainer", "Explanation", "explain", "open_explainer"]
