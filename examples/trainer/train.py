"""The example's code. It runs with MLRun in the image, and without."""

from importlib import metadata


def train(context, rounds: int = 3, packages=("humanize", "tabulate")):
    """Pretends to train a model, and says with which packages."""
    for name in packages:
        print(f"using {name} {metadata.version(name)}")
    loss = 1.0
    for n in range(1, rounds + 1):
        loss /= 2
        context.logger.info(f"round {n} of {rounds}: loss {loss}")
    context.log_result("loss", loss)
