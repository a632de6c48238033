#!/bin/sh
# Prints the path of a Python that can hold the environment, or says what is missing. $PYTHON is the only candidate if set.
if [ -n "$PYTHON" ]; then
    set -- "$PYTHON"
else
    set -- python3 python3.13 python3.12 python3.11 python
fi
wrong=""
for name do
    path=$(command -v "$name" 2>/dev/null) || {
        [ -n "$PYTHON" ] && wrong=" no program $PYTHON;"
        continue
    }
    "$path" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || {
        version=$("$path" -c 'import platform; print(platform.python_version())' 2>/dev/null) || version=broken
        wrong="$wrong $name is $version;"
        continue
    }
    # Debian and Ubuntu ship Python without the part that makes virtual environments.
    "$path" -c 'import ensurepip, venv' 2>/dev/null || {
        wrong="$wrong $name has no venv module (Debian, Ubuntu: sudo apt install $(basename "$path")-venv);"
        continue
    }
    echo "$path"
    exit 0
done
echo "RayRLHF needs Python 3.11, 3.12 or 3.13.${wrong:+ Found:$wrong}" >&2
echo "Install one (Debian, Ubuntu: sudo apt install python3 python3-venv; Fedora: sudo dnf install python3.12;" >&2
echo "macOS: brew install python@3.12), or name one: make PYTHON=python3.12 ..." >&2
exit 1
