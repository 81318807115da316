# Runs a script as the workload will, and then lays out what the interpreter took for it in a tree of
# its own, where that interpreter runs with nothing else: collect.py SCRIPT ROOT
#
#   ROOT/python/bin/python3           the interpreter; it finds its library beside it
#   ROOT/python/lib/python3.11/…      the modules, compiled, whatever their times say
#   ROOT/lib/…                        the shared libraries, where the loader looks for them
import sys

script, root = sys.argv[1:3]
exec(compile(open(script).read(), script, "exec"), {"__name__": "__main__"})
modules = list(sys.modules.values())

import os, py_compile, shutil, subprocess
from importlib.util import cache_from_source

library = os.path.dirname(os.__file__)
home = os.path.join(root, "python/lib", "python%d.%d" % sys.version_info[:2])


def copy(source, to):
    os.makedirs(os.path.dirname(to), exist_ok=True)
    shutil.copy(source, to)


def linked(arguments, environment={}):
    """The shared libraries of a program, by their names in the file system (ld.so(8))."""
    done = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, check=True)
    return [word for word in done.stdout.decode().split() if word.startswith("/")]


interpreter = os.path.realpath(sys.executable)
copy(interpreter, os.path.join(root, "python/bin/python3"))
# Without it the interpreter complains that a part of its library is missing.
os.makedirs(os.path.join(home, "lib-dynload"), exist_ok=True)
libraries = linked([interpreter], {"LD_TRACE_LOADED_OBJECTS": "1"})
loader = next(name for name in libraries if "/ld-" in name)
for module in modules + [os]:
    source = getattr(module, "__file__", None)
    if not source or not source.startswith(library + "/") or not os.path.isfile(source):
        continue
    to = os.path.join(home, os.path.relpath(source, library))
    copy(source, to)
    if source.endswith(".py"):
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(source, cache_from_source(to), doraise=True, invalidation_mode=mode)
    else:
        libraries += linked([loader, "--list", source])
for name in set(libraries):
    copy(name, root + os.path.normpath(name))
