#!/bin/sh
# Known vulnerabilities of what is locked, by PyPI's advisories; writes docs/audit.md.
#
#     deploy/audit.sh PIP_AUDIT
#
# Exits with 1 where there are some, and with 3 where the service did not answer for all of them
# (--strict: a package that it does not know is an error, or nothing looked up would be nothing found).
set -u
cd "$(dirname "$0")/.."
report=docs/audit.md status=0
{
    echo "# Known vulnerabilities"
    echo
    echo "Written by \`make audit\` on $(date -u +%F): [pip-audit](https://pypi.org/project/pip-audit/) over what is locked."
} > "$report"
for file in constraints.txt deploy/hashes.txt; do
    how=--no-deps
    [ "$file" = constraints.txt ] || how=--require-hashes
    found=$("$1" --strict --disable-pip "$how" --progress-spinner off --timeout 10 --format markdown --requirement "$file" 2> build-audit.log)
    ended=$?
    said=$(tail -n 1 build-audit.log)
    rm -f build-audit.log
    if [ $ended -ne 0 ] && [ -z "$found" ]; then
        found="not run: the vulnerability service could not be asked."
        echo "audit of $file not run: $said" >&2
        ended=3
    fi
    [ $ended -le $status ] || status=$ended
    printf '\n## %s\n\n%s\n' "$file" "${found:-None.}" >> "$report"
done
exit $status
