"""Prints what a CTest JUnit file's outputs report as skipped, one a line, each with its reason: GoogleTest's cases, cases of
Python's unittest, and whole tests that ended with their skip code."""
import re
import sys
import xml.etree.ElementTree as ElementTree

for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
    output = "".join(node.text or "" for node in case.iter("system-out"))
    # GoogleTest prints the reason after "Skipped" and the case's name on the line "[  SKIPPED ] Suite.Name (12 ms)".
    for match in re.finditer(r"Skipped\n(.*?)\n*\[  SKIPPED \] (\S+) \(", output, re.S):
        reason = " ".join(match.group(1).split()) or "no reason given"
        print(f"{case.get('name')}: {match.group(2)}: {reason}")
    # unittest prints a case's description, where it has one, on a line of its own.
    for match in re.finditer(r"^(\w+) \(.*\)(?:\n.*)? \.\.\. skipped ['\"](.*)['\"]$", output, re.M):
        print(f"{case.get('name')}: {match.group(1)}: {match.group(2)}")
    if case.get("status") == "notrun":
        print(f"{case.get('name')}: {' '.join(output.split()) or 'no reason given'}")
