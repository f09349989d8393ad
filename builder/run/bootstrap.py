"""Calls a handler as the task in a JSON file says: for images that have no mlrun.

The handler gets the parameters that it has arguments for. A first argument named
"context" gets an object with the most used parts of MLRun's context. What the handler
returns, and what it logs by context.log_result, are the results of the run.
"""
import importlib
import importlib.util
import inspect
import json
import math
import os
import sys
import traceback


class Logger:
    """Writes lines, with the rest of the arguments as name=value."""

    def _write(self, level, message, **values):
        words = [level, str(message)] + ["%s=%r" % item for item in values.items()]
        print(" ".join(words), flush=True)

    def debug(self, message, **values):
        self._write("debug", message, **values)

    def info(self, message, **values):
        self._write("info", message, **values)

    def warning(self, message, **values):
        self._write("warning", message, **values)

    warn = warning

    def error(self, message, **values):
        self._write("error", message, **values)


class Context:
    """The part of MLRun's context that needs no server."""

    def __init__(self, task):
        self.name = task["name"]
        self.project = task["project"]
        self.uid = task["uid"]
        self.labels = dict(task["labels"])
        self.parameters = dict(task["parameters"])
        self.inputs = dict(task["inputs"])
        self.artifact_path = task["artifact_path"]
        self.logger = Logger()
        self.results = {}

    def log_result(self, key, value, commit=False):
        self.results[str(key)] = value

    def log_results(self, results, commit=False):
        for key, value in results.items():
            self.log_result(key, value)

    def get_param(self, key, default=None):
        return self.parameters.setdefault(key, default)

    def get_input(self, key, url=""):
        return self.inputs.get(key, url)

    def get_secret(self, key):
        return os.environ.get("MLRUN_K8S_SECRET__" + key.upper(), os.environ.get(key))


def load(file):
    """Returns the module in a file, under the name that it would be imported by."""
    name = os.path.splitext(os.path.basename(file))[0]
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def find(task, context):
    """Returns the function that the task names."""
    names = task["handler"].replace("::", ".").split(".")
    holder = load(task["file"]) if task["file"] else None
    if holder is None or not hasattr(holder, names[0]):
        # module.function, module.Class::method
        for end in range(len(names) - 1, 0, -1):
            module = ".".join(names[:end])
            if importlib.util.find_spec(names[0]) is None:
                break
            try:
                holder, names = importlib.import_module(module), names[end:]
                break
            except ModuleNotFoundError as missing:
                if missing.name is None or not (module + ".").startswith(missing.name + "."):
                    raise
    for name in names:
        if inspect.isclass(holder):
            holder = holder(**arguments(holder, context, {}))
        if holder is None or not hasattr(holder, name):
            raise SystemExit("there is no handler %s" % task["handler"])
        holder = getattr(holder, name)
    return holder


def arguments(function, context, values):
    """Returns those of the values that the function takes, and the context."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return values
    taken = {}
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        taken.update(values)
    for position, (name, parameter) in enumerate(known.items()):
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            if position == 0 and name == "context":
                taken[name] = context
            elif name in values:
                taken[name] = values[name]
    return taken


def plain(value):
    """Returns what JSON can hold for a value."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    for convert in ("item", "tolist"):
        try:
            return plain(getattr(value, convert)())
        except Exception:
            pass
    return str(value)


def save(results, most):
    """Writes the results to where the run's runner reads them."""
    if not results:
        return
    text = json.dumps(plain(results)).encode()
    if len(text) > most:
        print("the results of %d bytes are longer than %d and are left out" % (len(text), most), file=sys.stderr)
        return
    with open(os.environ["KILN_RESULTS"], "wb") as file:
        file.write(text)


def main(task):
    sys.argv = [task["file"] or task["handler"]] + task["args"]
    # In the place of this file's folder, as if the function's own file had been run.
    sys.path[0] = os.path.dirname(os.path.abspath(task["file"])) if task["file"] else os.getcwd()
    if os.getcwd() not in sys.path:
        sys.path.insert(1, os.getcwd())
    context = Context(task)
    try:
        function = find(task, context)
        values = dict(task["inputs"])
        values.update(task["parameters"])
        returned = function(**arguments(function, context, values))
        if isinstance(returned, dict):
            context.log_results(returned)
        elif returned is not None:
            context.log_result("return", returned)
    finally:
        save(context.results, task["max_results"])


if __name__ == "__main__":
    with open(sys.argv[1]) as task_file:
        the_task = json.load(task_file)
    try:
        main(the_task)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
